"""One step of the progressive schedule: a model trained at one length under one RopeScaling, resumable after a kill."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.files import writing
from ropewalk.finetune.adapters import adapters
from ropewalk.finetune.data import SegmentData
from ropewalk.finetune.gathered import Slices
from ropewalk.finetune.history import History
from ropewalk.finetune.memory import explained, training_work
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.strategy import put_together, to_train, trainer_options
from ropewalk.finetune.utilisation import flops_per_token, peak_flops
from ropewalk.models.base import own_scaling, own_window
from ropewalk.models.checkpoints import LastCheckpoint, SeededBatches, WholeCheckpointIO, fit, steps_done
from ropewalk.models.precision import resolve_precision
from ropewalk.models.progress import TrainingProgress
from ropewalk.rope import LearnedScaling, RopeScaling, extend


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
    first_step: int = 0,
    first_sample: int = 0,
    parallel: ParallelConfig | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return a row per optimizer step; goes on from ``state_folder``'s last checkpoint.

    Args:
        scaling: put into the model first; None trains under plain RoPE, without short rows or learned factors. With
            ``config.learn_factors`` the model's scaling afterwards (`current_scaling`) is what was learned.
        parallel: the devices; this one alone by default. Where weights were split, every process has them whole
            afterwards, in the processor's memory.
        first_step: steps of the schedule before this one, for the numbers in its rows ...
        first_sample: ... and their samples.

    Raises:
        ValueError: no document is long enough, rows or length do not divide, or the loss became NaN too often.
        MemoryError: memory does not suffice; names settings that would help.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    L.seed_everything(seed, verbose=False)
    parallel = parallel or ParallelConfig(name="one")
    if parallel.context > 1:
        Slices(0, parallel.context).check(step.length)
    groups = parallel.devices * parallel.nodes // parallel.context
    precision = resolve_precision(config.precision)
    dtype = str(model.dtype).removeprefix("torch.")
    gpu = torch.cuda.is_available()
    work = training_work(step, config, parallel, mixed="mixed" in precision, dtype=dtype, gpu=gpu)
    if scaling is not None:
        extend(model, scaling)
    last = state_folder / "last.ckpt"
    window = scaling.original_length if scaling is not None else 0
    learned = None
    if scaling is not None and config.learn_factors:
        learned = LearnedScaling(scaling, device=model.device)
    data = SegmentData(
        store,
        tokenizer,
        step,
        recall_share=config.recall_share,
        # Of all groups together; each reads its own.
        rows_at_once=groups * work.rows_at_once,
        seed=seed,
        first_step=steps_done(last),
        across_documents=config.across_documents,
        short_share=config.short_share if scaling is not None else 0.0,
        window=window,
    )
    trainer = L.Trainer(
        max_steps=step.steps,
        precision=precision,
        accumulate_grad_batches=data.accumulate,
        gradient_clip_val=config.gradient_clip,
        logger=logger or False,
        default_root_dir=state_folder,
        enable_model_summary=False,
        plugins=[WholeCheckpointIO(config.keep_checkpoints)],
        **trainer_options(parallel),
        callbacks=[SeededBatches(seed), LastCheckpoint(last, config.checkpoint_every), TrainingProgress(label)],
    )
    with (
        to_train(model, parallel) as own,
        adapters(own, config.lora),
        _prepared(own, config, parallel),
    ):
        history = History(
            step.rows * step.length,
            rows_per_step=step.rows,
            flops_per_token=flops_per_token(own, length=step.length),
            peak_flops=trainer.world_size
            * peak_flops(precision, device=trainer.strategy.root_device, tflops=config.peak_tflops),
            first_step=first_step,
            first_sample=first_sample,
        )
        # First, so that a checkpoint holds the row of its own step.
        trainer.callbacks.insert(1, history)  # type: ignore[attr-defined]
        module = FinetuneModule(
            own,
            step,
            weight_decay=config.weight_decay,
            options=config,
            learned=learned,
            window=window,
            parallel=parallel,
        )
        with explained(work, model.config):
            fit(trainer, module, data, checkpoint=last)
        put_together(own)
    if learned is not None:
        learned.project()
        extend(model, learned.scaling())
    return history.rows


@contextmanager
def _prepared(model: PreTrainedModel, config: FinetuneConfig, parallel: ParallelConfig) -> Iterator[None]:
    """The model ready for training as ``config`` wants it, and as it was afterwards."""
    recompute = config.activations != "keep"
    if recompute:
        # Without re-entering, so that frozen embeddings (LoRA) do not cut the gradient off.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        model.base_model.compile()
    model.train()
    try:
        yield
    finally:
        model.eval()
        if parallel.context > 1:
            model.set_attn_implementation("sdpa")
        if config.compile:
            model.base_model._compiled_call_impl = None
        if recompute:
            model.gradient_checkpointing_disable()


def control_step(config: FinetuneConfig, *, window: int) -> FinetuneStepConfig:
    """Rows of the original window for as many tokens as all long steps read, at the last one's rate."""
    tokens = sum(part.rows * part.length * part.steps for part in config.schedule.values())
    rows = max(1, config.second.rows * config.second.length // window)
    return FinetuneStepConfig(
        length=window,
        steps=max(1, round(tokens / (rows * window))),
        rows=rows,
        learning_rate=config.second.learning_rate,
        decay=config.second.decay,
        warmup_steps=config.second.warmup_steps,
        subsets=config.second.subsets,
    )


def train_control(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    config: FinetuneConfig,
    base: Mapping[str, Any],
    *,
    seed: int,
    state_folder: Path,
    parallel: ParallelConfig | None = None,
) -> list[dict[str, float]]:
    """Train the base ``model`` on `control_step` under plain RoPE or its own scaling; a row per optimizer step.

    Args:
        base: what the stage base wrote of it.
    """
    step = control_step(config, window=own_window(base))
    label = f"control at {step.length:,}"
    return finetune(
        model,
        tokenizer,
        store,
        step,
        # Its rows are not those of the schedule, so what divides theirs need not divide them.
        replace(config, rows_at_once=None, short_share=0.0, learn_factors=False),
        scaling=own_scaling(base),
        seed=seed,
        state_folder=state_folder,
        label=label,
        parallel=parallel,
    )


def save_checkpoint(
    model: Any, tokenizer: Any, scaling: RopeScaling | None, folder: Path, *, mixed: bool = False
) -> None:
    """Weights as safetensors with a plain RoPE config, the tokenizer and the scaling; whole or not at all.

    Args:
        mixed: say beside it that inputs of the original window were read under the original RoPE.
    """
    with writing(folder) as aside:
        aside.mkdir()
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if scaling is not None:
            (aside / "scaling.json").write_text(scaling.to_json())
            if mixed:
                length = scaling.original_length
                short = RopeScaling((1.0,) * len(scaling.factors), length, length, method="none")
                (aside / "short_scaling.json").write_text(short.to_json())
