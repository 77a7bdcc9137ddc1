"""The LightningModule: next-token loss of long rows under a model's current RopeScaling."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ropewalk.config import FinetuneStepConfig, ParallelConfig
from ropewalk.finetune.share import Share, share_here
from ropewalk.finetune.strategy import shard
from ropewalk.models.loss import targets_of


class FinetuneModule(L.LightningModule):
    """AdamW with warm-up, then linear decay or a constant rate (paper App. A)."""

    def __init__(
        self,
        model: PreTrainedModel,
        step: FinetuneStepConfig,
        *,
        weight_decay: float,
        parallel: ParallelConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self.step, self.weight_decay = model, step, weight_decay
        self.parallel = parallel or ParallelConfig(name="one")
        self.share = Share()

    def setup(self, stage: str) -> None:
        self.share = share_here(self.parallel)

    def configure_model(self) -> None:
        # Called once more by a second trainer.
        if self.parallel.strategy == "fsdp" and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            shard(self, self.model, self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        # Every row ends with the store's EOS, which need not be the one that the model's config names.
        rows = self.share.rows(batch)
        targets = targets_of(rows, ignore=int(batch[0, -1]))
        loss = self.share.mean(*self.share.summed_loss(self.model, rows, targets))
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
