"""What a training run leaves to look at: loss, learning rate, speed and memory of every step, kept across resumes."""

import resource
import statistics
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor


def peak_mib() -> float:
    """Largest memory so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class History(L.Callback):
    """A row per optimizer step, saved inside the checkpoint."""

    def __init__(self, tokens_per_step: int) -> None:
        self.rows: list[dict[str, float]] = []
        self._tokens, self._losses, self._rate = tokens_per_step, list[float](), 0.0
        self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        # Read here, since the schedule has moved on when the batch ends.
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        assert isinstance(loss, Tensor)
        # Lightning hands out the loss already divided by the number of accumulated microbatches.
        self._losses.append(float(loss) * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.rows):
            return
        now = time.perf_counter()
        row = {
            "step": trainer.global_step,
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": self._rate,
            "tokens_per_second": self._tokens / (now - self._start),
            "peak_mib": peak_mib(),
        }
        self._losses, self._start = [], now
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        if trainer.progress_bar_callback is not None:
            bar = getattr(trainer.progress_bar_callback, "train_progress_bar", None)
            if bar is not None:
                bar.set_postfix(
                    loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_second']:,.0f}", refresh=False
                )


def training_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean loss of the last tenth of the steps, median speed, largest memory."""
    last = rows[-max(1, len(rows) // 10) :]
    return {
        "steps": len(rows),
        "final_loss": statistics.fmean(row["loss"] for row in last),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "peak_mib": max(row["peak_mib"] for row in rows),
    }
