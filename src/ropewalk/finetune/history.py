"""A table of loss, learning rate, speed and memory by optimizer step, which survives interruptions."""

import math
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ropewalk.config import FinetuneStepConfig


def peak_mib() -> float:
    """Peak memory in MiB so far, of the GPU if there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class History(L.Callback):
    """Collects a row for each optimizer step, and is saved in the checkpoint.

    Args:
        token_seconds: least seconds that a token can take, for the utilisation (`ropewalk.finetune.utilisation`).
        earlier: rows of the training so far, whose numbers of steps and samples continue here.
    """

    def __init__(
        self, step: FinetuneStepConfig, *, token_seconds: float, earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._step, self._first_step = step, len(earlier)
        self._first_sample = earlier[-1]["samples"] if earlier else 0
        self._token_seconds, self._losses, self._rate = token_seconds, list[float](), 0.0
        self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        # Not at the end of the batch, when the schedule has already moved on.
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        assert isinstance(loss, Tensor)
        # Lightning divides the loss by the number of accumulated microbatches.
        self._losses.append(float(loss) * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.rows):
            return
        now = time.perf_counter()
        seconds = now - self._start
        speed = self._step.batch_size * self._step.length / seconds
        row = {
            "step": self._first_step + trainer.global_step,
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": self._rate,
            "tokens_per_second": speed,
            "step_seconds": seconds,
            "peak_mib": peak_mib(),
            "gradient_norm": pl_module.gradient_norm,
            "samples": self._first_sample + trainer.global_step * self._step.batch_size,
            "utilisation": speed * self._token_seconds,
        }
        row |= {name: total / count for name, (total, count) in pl_module.loss_by_position.items() if count}
        pl_module.loss_by_position.clear()
        self._losses, self._start = [], now
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["step"]))
        bar = getattr(trainer.progress_bar_callback, "train_progress_bar", None)
        if bar is not None:
            shown = {
                "loss": f"{row['loss']:.3f}",
                "tokens_per_s": f"{speed:,.0f}",
                "mfu": f"{row['utilisation']:.1%}",
                "norm": f"{row['gradient_norm']:.2f}",
                "lr": f"{self._rate:.1e}",
                "mib": f"{row['peak_mib']:,.0f}",
            }
            bar.set_postfix(shown, refresh=False)


def training_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean loss of the last tenth of the steps, cost, median speed and utilisation, peak memory; empty for no step."""
    if not rows:
        return {}
    last = [row["loss"] for row in rows[-max(1, len(rows) // 10) :]]
    metrics = {
        "steps": len(rows),
        # Steps with a loss that is not a number did not train the model.
        "final_loss": statistics.fmean([loss for loss in last if math.isfinite(loss)] or [math.nan]),
        # Steps of a checkpoint that an earlier version wrote lack their seconds.
        "tokens": round(sum(row["tokens_per_second"] * row.get("step_seconds", 0.0) for row in rows)),
        "hours": sum(row.get("step_seconds", 0.0) for row in rows) / 3600,
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "peak_mib": max(row["peak_mib"] for row in rows),
        "utilisation": statistics.median(row["utilisation"] for row in rows),
    }
    if by_position := next((row for row in reversed(rows) if "loss_to_1" in row), None):
        metrics |= {name: value for name, value in by_position.items() if name.startswith("loss_to_")}
    return metrics
