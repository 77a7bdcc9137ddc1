"""Training checkpoints: written whole or not at all, between two optimizer steps, and resumed from."""

import pickle
import signal
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ropewalk.files import remove, writing
from ropewalk.models import sharded
from ropewalk.models.reasons import reason


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside and renames it, so that a kill leaves no partial one; keeps the last ``keep``."""

    def __init__(self, keep: int = 2) -> None:
        super().__init__()
        self._keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with rotating(Path(path), self._keep) as aside:
            torch.save(checkpoint, aside)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return sharded.read_whole(path) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)


@contextmanager
def rotating(path: Path, keep: int) -> Iterator[Path]:
    """Write a checkpoint with `ropewalk.files.writing` and keep the last ``keep``; a whole one exists at any moment."""
    with writing(path) as aside:
        yield aside
        for age in range(keep, 0, -1):
            remove(_aged(path, age))
            if _aged(path, age - 1).exists():
                _aged(path, age - 1).replace(_aged(path, age))
    remove(_aged(path, keep))


def _aged(path: Path, age: int) -> Path:
    """Path of the checkpoint that was the newest one ``age`` checkpoints ago."""
    return path if age == 0 else path.with_name(f"{path.name}.{age}")


def newest_checkpoint(path: Path) -> Path | None:
    """Find the newest whole checkpoint saved as ``path``, if any; damaged ones are reported and renamed."""
    older = [aged for aged in path.parent.glob(f"{path.name}.*") if aged.suffix[1:].isdigit()]
    for candidate in [path, *sorted(older, key=lambda aged: int(aged.suffix[1:]))]:
        if not candidate.exists():
            continue
        damage = _damage(candidate)
        if damage is None:
            return candidate
        damaged = path.with_name(f"damaged-{candidate.name}")
        try:
            with writing(damaged) as aside:
                candidate.replace(aside)
        except FileNotFoundError:
            # Another process of the same training has renamed it already.
            continue
        print(
            f"{candidate} is damaged ({damage}) and now {damaged.name}; resuming from the one before", file=sys.stderr
        )
    return None


def _damage(path: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None where every part has the checksum that it was written with."""
    try:
        for part in sharded.parts(path) if path.is_dir() else [path]:
            with zipfile.ZipFile(part) as archive:
                if (name := archive.testzip()) is not None:
                    return f"{name} has another checksum"
        step = _load(path).get("global_step")
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        return reason(error)
    return "it holds no step" if step is None else None


def _load(path: Path) -> Any:
    """Load a checkpoint; if it is a folder, only what is not in its shards."""
    return sharded.rest(path) if path.is_dir() else torch.load(path, weights_only=True, map_location="cpu", mmap=True)


class LastCheckpoint(Checkpoint):
    """Saves a checkpoint every ``every`` optimizer steps, and only between two steps.

    Lightning's ModelCheckpoint also saves in the middle of the first step after a resume; a run resumed from there
    would accumulate microbatches of two steps into one.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every = path, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and trainer.global_step % self._every == 0:
            trainer.save_checkpoint(self._path, weights_only=False)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning counts microbatches, and a step has a different number of them on another number of devices.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            missing = checkpoint["global_step"] * trainer.accumulate_grad_batches - counts["ready"]
            counts.update({name: count + missing for name, count in counts.items()})


class SeededBatches(L.Callback):
    """Seeds each forward pass (dropout) from the run's seed, the step, the microbatch and the process alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        microbatch = batch_idx % trainer.accumulate_grad_batches
        entropy = (self._seed, trainer.global_step, microbatch, trainer.global_rank)
        words = np.random.SeedSequence(entropy).generate_state(2)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def steps_done(checkpoint: Path | None) -> int:
    """Number of optimizer steps in a checkpoint; 0 without one."""
    return int(_load(checkpoint)["global_step"]) if checkpoint else 0


def fit(trainer: L.Trainer, module: L.LightningModule, data: Any, *, checkpoint: Path | None) -> None:
    """Train ``module`` on ``data``, from ``checkpoint`` where there is one (`newest_checkpoint`).

    Args:
        data: a data module or loader whose batches depend on seed and step alone, and which begins at `steps_done`.

    Raises:
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    for harmless in ("does not have many workers", "has `__len__` defined", "your dataloader is not resumable"):
        # A batch depends on (seed, step) alone, so one worker is enough and a resume is exact.
        warnings.filterwarnings("ignore", message=f".*{harmless}.*")
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning turns an interrupt into a silent exit, and leaves SIGINT ignored.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
