"""Fitness: how well the model reads the search documents under a candidate, in one pass each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.files import read_json, write_json
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


class RememberedLosses:
    """Losses of points read outside a study, kept in a file: no point is paid for again, also not after a kill."""

    def __init__(self, fitness: Callable[[RopeScaling], float], path: Path) -> None:
        self._fitness, self._path = fitness, path
        entries = read_json(path) if path.is_file() else []
        self._losses = {RopeScaling.from_json(entry["point"]): float(entry["loss"]) for entry in entries}

    def __contains__(self, candidate: RopeScaling) -> bool:
        return candidate in self._losses

    def __call__(self, candidate: RopeScaling) -> float:
        if candidate not in self._losses:
            self._losses[candidate] = self._fitness(candidate)
            entries = [{"point": point.to_json(), "loss": loss} for point, loss in self._losses.items()]
            write_json(self._path, entries)
        return self._losses[candidate]
