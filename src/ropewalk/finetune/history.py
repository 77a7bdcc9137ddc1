"""What a training run leaves to look at: a row of loss, rate, speed and memory per step, kept across resumes."""

import math
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
    """A row per optimizer step, saved inside the checkpoint.

    Args:
        rows_per_step: samples in a step.
        flops_per_token: what a token must cost (`ropewalk.finetune.utilisation`) ...
        peak_flops: ... and what all devices together could do in a second; 0 for rows without utilisation.
        first_step: steps of the schedule before this one, for the numbers in its rows and in MLflow.
        first_sample: and their samples.
    """

    def __init__(
        self,
        tokens_per_step: int,
        *,
        rows_per_step: int = 0,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        first_step: int = 0,
        first_sample: int = 0,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._rows_per_step, self._first_step, self._first_sample = rows_per_step, first_step, first_sample
        self._utilisation_per_speed = flops_per_token / peak_flops if peak_flops else None
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
        speed = self._tokens / (now - self._start)
        row = {
            "step": self._first_step + trainer.global_step,
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": self._rate,
            "tokens_per_second": speed,
            "peak_mib": peak_mib(),
            "gradient_norm": float(getattr(pl_module, "gradient_norm", math.nan)),
            "samples": self._first_sample + trainer.global_step * self._rows_per_step,
        }
        if self._utilisation_per_speed is not None:
            row["utilisation"] = speed * self._utilisation_per_speed
        by_position = getattr(pl_module, "loss_by_position", {})
        row |= {name: total / count for name, (total, count) in by_position.items() if count}
        by_position.clear()
        self._losses, self._start = [], now
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["step"]))
        if trainer.progress_bar_callback is not None:
            bar = getattr(trainer.progress_bar_callback, "train_progress_bar", None)
            if bar is not None:
                shown = {
                    "loss": f"{row['loss']:.3f}",
                    "tokens_per_s": f"{speed:,.0f}",
                    "mfu": f"{row['utilisation']:.1%}" if "utilisation" in row else "",
                    "norm": f"{row['gradient_norm']:.2f}",
                    "lr": f"{self._rate:.1e}",
                    "mib": f"{row['peak_mib']:,.0f}",
                }
                bar.set_postfix({name: text for name, text in shown.items() if text}, refresh=False)


def training_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean loss of the last tenth of the steps, median speed and utilisation, largest memory; {} of no steps."""
    if not rows:
        return {}
    last = [row["loss"] for row in rows[-max(1, len(rows) // 10) :]]
    found = {
        "steps": len(rows),
        # Steps that gave no number were left out.
        "final_loss": statistics.fmean([loss for loss in last if math.isfinite(loss)] or [math.nan]),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "peak_mib": max(row["peak_mib"] for row in rows),
    }
    if utilisations := [row["utilisation"] for row in rows if "utilisation" in row]:
        found["utilisation"] = statistics.median(utilisations)
    if by_position := next((row for row in reversed(rows) if "loss_to_1" in row), None):
        found |= {name: value for name, value in by_position.items() if name.startswith("loss_to_")}
    return found
