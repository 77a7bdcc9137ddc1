"""The LightningModule: next-token loss of long rows under a model's current RopeScaling."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.config import FinetuneStepConfig
from ropewalk.corpus.segments import Rows
from ropewalk.models.loss import mean_loss


class FinetuneModule(L.LightningModule):
    """AdamW with warm-up, then linear decay or a constant rate (paper App. A)."""

    def __init__(
        self, model: PreTrainedModel, step: FinetuneStepConfig, *, weight_decay: float, answer_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.step, self.weight_decay, self.answer_weight = model, step, weight_decay, answer_weight

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        # Every row ends with the store's EOS, which need not be the one that the model's config names.
        loss = mean_loss(
            self.model,
            batch.ids,
            ignore=int(batch.ids[0, -1]),
            answers=batch.answers,
            answer_weight=self.answer_weight,
        )
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss of step {self.global_step} is {loss.item()}; lower finetune's learning_rate or use float32"
            )
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.step.learning_rate, betas=(0.9, 0.95), weight_decay=self.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.share_of_learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def share_of_learning_rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` as a share of the peak."""
        warmup = min(self.step.warmup_steps, self.step.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.step.decay == "constant":
            return 1.0
        return max(self.step.steps - step, 0) / max(self.step.steps - warmup, 1)
