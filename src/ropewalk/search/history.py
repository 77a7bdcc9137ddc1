"""What a search did, step by step and trial by trial, and what came out."""

import math
from dataclasses import dataclass
from typing import Any

from ropewalk.rope import RopeScaling


@dataclass(frozen=True)
class SearchResult:
    best: RopeScaling
    """Composed with any earlier scaling: ready to put into the model."""
    loss: float
    """Nats per token on the search documents."""
    seed: RopeScaling | None
    """What the gradient alone found (composed), to measure what evolution gained over it."""
    seed_loss: float | None
    rows: list[dict[str, Any]]
    """One row per gradient step and trial: phase, length, trial, generation, state, loss, best, tokens
    and the point. Loss and best are empty for a trial that was not read whole."""
    forward_tokens: int
    """Tokens read, a backward counted as two more forwards."""
    saved_tokens: int
    """Tokens that stopping hopeless trials early spared."""
    seconds: float
    """Worked at it, by all workers together."""
    record: dict[str, Any]
    """What the study is of: model, data, protocol, space, sampler and seed."""


class History:
    """Rows of a search, with the best so far of each phase and the tokens paid so far."""

    def __init__(self, *, length: int) -> None:
        self.length, self.tokens = length, 0
        self.rows: list[dict[str, Any]] = []
        self._best: dict[str, float] = {}

    def add(
        self,
        phase: str,
        trial: int,
        point: RopeScaling,
        *,
        loss: float | None,
        tokens: int,
        state: str = "COMPLETE",
        generation: int = -1,
    ) -> None:
        self.tokens += tokens
        best = self._best.get(phase, math.inf)
        if loss is not None:
            best = self._best[phase] = min(loss, best)
        self.rows.append(
            {
                "phase": phase,
                "length": self.length,
                "trial": trial,
                "generation": generation,
                "state": state,
                "loss": loss,
                "best": best if math.isfinite(best) else None,
                "tokens": self.tokens,
                **{f"lambda_{pair:02d}": factor for pair, factor in enumerate(point.factors)},
                "n_hat": point.n_hat,
                "attention_factor": point.attention_factor,
            }
        )
