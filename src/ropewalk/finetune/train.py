"""One step of the progressive schedule: a model trained at one length under one RopeScaling, resumable after a kill."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.files import writing
from ropewalk.finetune.data import SegmentData
from ropewalk.finetune.gathered import Slices
from ropewalk.finetune.history import History
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.strategy import put_together, trainer_options
from ropewalk.models.checkpoints import LastCheckpoint, SeededBatches, WholeCheckpointIO, fit, steps_done
from ropewalk.models.precision import resolve_precision
from ropewalk.models.progress import TrainingProgress
from ropewalk.rope import RopeScaling, extend


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    step: FinetuneStepConfig,
    config: FinetuneConfig,
    *,
    scaling: RopeScaling | None,
    seed: int,
    state_folder: Path,
    label: str,
    logger: Logger | None = None,
    parallel: ParallelConfig | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return a row per optimizer step; goes on from ``state_folder``'s last checkpoint.

    Args:
        scaling: put into the model first; None trains under plain RoPE.
        parallel: the devices; this one alone by default. Where weights were split, only the first process has them
            whole afterwards, in the processor's memory.

    Raises:
        ValueError: no document is long enough, rows or length do not divide, or the loss became NaN.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    L.seed_everything(seed, verbose=False)
    parallel = parallel or ParallelConfig(name="one")
    if parallel.context > 1:
        Slices(0, parallel.context).check(step.length)
    groups = parallel.devices * parallel.nodes // parallel.context
    if scaling is not None:
        extend(model, scaling)
    last = state_folder / "last.ckpt"
    data = SegmentData(
        store,
        tokenizer,
        step,
        recall_share=config.recall_share,
        # Of all groups together; each reads its own.
        rows_at_once=groups * _rows_at_once(step, config, groups=groups),
        seed=seed,
        first_step=steps_done(last),
    )
    history = History(step.rows * step.length)
    trainer = L.Trainer(
        max_steps=step.steps,
        precision=resolve_precision(config.precision),
        accumulate_grad_batches=data.accumulate,
        gradient_clip_val=config.gradient_clip,
        logger=logger or False,
        default_root_dir=state_folder,
        enable_model_summary=False,
        plugins=[WholeCheckpointIO(config.keep_checkpoints)],
        **trainer_options(parallel),
        callbacks=[
            SeededBatches(seed),
            history,
            LastCheckpoint(last, config.checkpoint_every),
            TrainingProgress(label),
        ],
    )
    model.train()
    try:
        module = FinetuneModule(model, step, weight_decay=config.weight_decay, parallel=parallel)
        fit(trainer, module, data, checkpoint=last)
        put_together(model, here=trainer.is_global_zero)
    finally:
        model.eval()
        if parallel.context > 1:
            model.set_attn_implementation("sdpa")
    return history.rows


def _rows_at_once(step: FinetuneStepConfig, config: FinetuneConfig, *, groups: int = 1) -> int:
    """The largest divisor of a group's rows of a step that fits.

    Raises:
        ValueError: the step's rows cannot be shared by so many groups of devices.
    """
    own, left = divmod(step.rows, groups)
    if left or not own:
        raise ValueError(
            f"{step.rows} rows cannot be shared by {groups} groups of devices; "
            f"finetune's rows must be a multiple of {groups}"
        )
    most = max(1, config.rows_at_once or config.tokens_at_once // step.length)
    return max(rows for rows in range(1, own + 1) if own % rows == 0 and rows <= most)


def control_step(config: FinetuneConfig, *, window: int) -> FinetuneStepConfig:
    """Rows of the original window for as many tokens as both long steps read, at the same rate."""
    tokens = sum(part.rows * part.length * part.steps for part in (config.first, config.second))
    rows = max(1, config.second.rows * config.second.length // window)
    return FinetuneStepConfig(
        length=window,
        steps=max(1, round(tokens / (rows * window))),
        rows=rows,
        learning_rate=config.second.learning_rate,
        decay=config.second.decay,
        warmup_steps=config.second.warmup_steps,
    )


def save_checkpoint(model: Any, tokenizer: Any, scaling: RopeScaling | None, folder: Path) -> None:
    """Weights as safetensors with a plain RoPE config, the tokenizer and the scaling; whole or not at all."""
    with writing(folder) as aside:
        aside.mkdir()
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if scaling is not None:
            (aside / "scaling.json").write_text(scaling.to_json())
