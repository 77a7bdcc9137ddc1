"""One step of the progressive schedule: a model trained at one length under one RopeScaling, resumable after a kill."""

import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.files import writing
from ropewalk.finetune.data import SegmentData
from ropewalk.finetune.history import History
from ropewalk.finetune.module import FinetuneModule
from ropewalk.models.precision import resolve_precision
from ropewalk.models.progress import TrainingProgress
from ropewalk.rope import RopeScaling, extend


class _WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints written aside and renamed, so that a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(path) as aside:
            torch.save(checkpoint, aside)


class _LastCheckpoint(Checkpoint):
    """Saves every so many optimizer steps, and only between two of them.

    ModelCheckpoint saves once more in the middle of the first step after a resume, and a run that
    went on from there would put microbatches of two steps together.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and trainer.global_step % self._every == 0:
            trainer.save_checkpoint(self._path, weights_only=False)


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
) -> list[dict[str, float]]:
    """Train ``model`` in place and return a row per optimizer step; goes on from ``state_folder``'s last checkpoint.

    Args:
        scaling: put into the model first; None trains under plain RoPE.

    Raises:
        ValueError: no document is long enough, or the loss became NaN.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    for harmless in ("does not have many workers", "has `__len__` defined", "your dataloader is not resumable"):
        # The rows of a step depend on (seed, step) alone: one worker is enough and a resume is exact.
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    L.seed_everything(seed, verbose=False)
    if scaling is not None:
        extend(model, scaling)
    last = state_folder / "last.ckpt"
    done = int(torch.load(last, weights_only=True, map_location="cpu")["global_step"]) if last.is_file() else 0
    data = SegmentData(
        store,
        tokenizer,
        step,
        recall_share=config.recall_share,
        rows_at_once=_rows_at_once(step, config),
        seed=seed,
        first_step=done,
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
        plugins=[_WholeCheckpointIO()],
        callbacks=[
            history,
            _LastCheckpoint(last, config.checkpoint_every),
            TrainingProgress(label),
        ],
    )
    model.train()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            FinetuneModule(model, step, weight_decay=config.weight_decay),
            datamodule=data,
            ckpt_path=last if last.is_file() else None,
            weights_only=True,
        )
    except SystemExit:
        # Lightning turns an interrupt into an exit without a word, and leaves SIGINT ignored.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    finally:
        model.eval()
    return history.rows


def _rows_at_once(step: FinetuneStepConfig, config: FinetuneConfig) -> int:
    """The largest divisor of the step's rows that fits."""
    most = max(1, config.rows_at_once or config.tokens_at_once // step.length)
    return max(rows for rows in range(1, step.rows + 1) if step.rows % rows == 0 and rows <= most)


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
