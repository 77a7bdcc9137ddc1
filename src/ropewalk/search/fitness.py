"""Fitness: how well the model reads the search documents under a candidate, in one pass each."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.loss import token_losses
from ropewalk.rope import RopeScaling, extend


@dataclass
class Fitness:
    """Mean loss over all tokens of ``rows`` (documents, length); counts the tokens it reads."""

    model: Any
    rows: Tensor
    first: RopeScaling | None = None
    """Scaling that candidates are applied on top of (second search), or None."""
    batch_tokens: int = 16_384
    forward_tokens: int = field(default=0, init=False)

    def composed(self, candidate: RopeScaling) -> RopeScaling:
        return self.first.then(candidate) if self.first else candidate

    @torch.no_grad()
    def __call__(self, candidate: RopeScaling) -> float:
        """Loss in nats; infinite when the model emits NaN."""
        extend(self.model, self.composed(candidate))
        rows_at_once = max(1, self.batch_tokens // self.rows.shape[1])
        device = next(self.model.parameters()).device
        total = 0.0
        for batch in self.rows.split(rows_at_once):
            total += token_losses(self.model, batch.to(device)).double().sum().item()
        self.forward_tokens += self.rows.numel()
        loss = total / (self.rows.shape[0] * (self.rows.shape[1] - 1))
        return loss if math.isfinite(loss) else math.inf
