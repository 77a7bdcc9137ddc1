"""What a search did, step by step and trial by trial, and what came out."""

from dataclasses import dataclass
from typing import Any

from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import NO_LOSS, Evaluation


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
    """One row per published method, gradient step, end of the gradient (phase learned) and trial: phase, length, trial,
    generation, state, reason of a failure, loss, best of the phase, best_so_far, tokens and the point. A trial that
    was not read whole has no loss. A gradient step reads rows of its own, so that its loss is no best_so_far."""
    seconds_of_rows: list[float | None]
    """What each trial took; none for what is timed together."""
    forward_tokens: int
    """Tokens read, a backward counted as two more forwards."""
    saved_tokens: int
    """Tokens that stopping hopeless trials early spared, less what early looks at shorter lengths cost."""
    seconds: float
    """Worked at it, by all workers together."""
    record: dict[str, Any]
    """What the study is of: model, data, protocol, space, settings and seed."""
    budget: dict[str, Any]
    """How far it was allowed to go: trials, tokens, patience."""
    perplexity: float | None = None
    """Of every token of the same documents, where the fitness is something else ..."""
    seed_perplexity: float | None = None
    """... and the seed's."""


class History:
    """Rows of a search, with the best so far of each phase and the tokens paid so far."""

    def __init__(self, *, length: int) -> None:
        self.length, self.tokens = length, 0
        self.rows: list[dict[str, Any]] = []
        self.seconds: list[float | None] = []
        self._best: dict[str, float] = {}

    def add_read(self, phase: str, trial: int, point: RopeScaling, found: Evaluation) -> None:
        """A point that was read before the first trial."""
        state, reason = ("FAIL", NO_LOSS) if found.loss is None else ("COMPLETE", None)
        self.add(phase, trial, point, loss=found.loss, tokens=found.forward_tokens, state=state, reason=reason)

    def add(
        self,
        phase: str,
        trial: int,
        point: RopeScaling,
        *,
        loss: float | None,
        tokens: int,
        state: str = "COMPLETE",
        reason: str | None = None,
        generation: int = -1,
        seconds: float | None = None,
    ) -> None:
        self.tokens += tokens
        if loss is not None:
            self._best[phase] = min(loss, self._best.get(phase, loss))
        read = [value for name, value in self._best.items() if name != "gradient"]
        self.seconds.append(seconds)
        self.rows.append(
            {
                "phase": phase,
                "length": self.length,
                "trial": trial,
                "generation": generation,
                "state": state,
                "reason": reason,
                "loss": loss,
                "best": self._best.get(phase),
                "best_so_far": min(read, default=None),
                "tokens": self.tokens,
                **{f"lambda_{pair:02d}": factor for pair, factor in enumerate(point.factors)},
                "n_hat": point.n_hat,
                "attention_factor": point.attention_factor,
            }
        )
