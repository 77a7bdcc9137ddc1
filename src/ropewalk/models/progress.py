"""The progress bar of a training; not in ropewalk.progress because Lightning takes seconds to import."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from ropewalk.progress import Progress


class TrainingProgress(ProgressBar):
    """Counts optimizer steps, also after a resume; Lightning's own bar compares microbatches with steps."""

    train_progress_bar: Progress

    def __init__(self, description: str) -> None:
        super().__init__()
        self._description, self._silent = description, False

    def disable(self) -> None:
        """Show no bar; Lightning calls this in every process of a training but the first."""
        self._silent = True

    def enable(self) -> None:
        self._silent = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_progress_bar = Progress(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=self._description,
            unit="step",
            smoothing=0.1,
            disable=self._silent,
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.train_progress_bar.n:
            if metrics := trainer.progress_bar_metrics:
                self.train_progress_bar.set_postfix({k: f"{v:.3f}" for k, v in metrics.items()}, refresh=False)
            self.train_progress_bar.update(trainer.global_step - self.train_progress_bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_progress_bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "train_progress_bar"):
            self.train_progress_bar.close()
