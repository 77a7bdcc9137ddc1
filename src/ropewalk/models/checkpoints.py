"""Checkpoints of a training: whole or absent, taken between two optimizer steps, and gone on from."""

import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ropewalk.files import writing


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints written aside and renamed, so that a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(path) as aside:
            torch.save(checkpoint, aside)


class LastCheckpoint(Checkpoint):
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


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps that ``checkpoint`` was taken after; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])


def fit(trainer: L.Trainer, module: L.LightningModule, data: Any, *, checkpoint: Path) -> None:
    """Train ``module`` on ``data``, from ``checkpoint`` where there is one.

    Args:
        data: a data module or loader whose rows depend on seed and step alone, and which begins
            at `steps_done`.

    Raises:
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    for harmless in ("does not have many workers", "has `__len__` defined", "your dataloader is not resumable"):
        # The rows of a step depend on (seed, step) alone: one worker is enough and a resume is exact.
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    except SystemExit:
        # Lightning turns an interrupt into an exit without a word, and leaves SIGINT ignored.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
