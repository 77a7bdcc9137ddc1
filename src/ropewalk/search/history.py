"""What a search did, step by step and trial by trial, and what came out."""

import math
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


Results = dict[int, SearchResult]
"""By length."""


class History:
    """Rows of a search, with the best so far of each phase and the tokens paid so far.

    Args:
        evaluation_tokens: what reading a point costs that is not stopped.
    """

    def __init__(self, *, length: int, evaluation_tokens: int) -> None:
        self.length, self.evaluation_tokens = length, evaluation_tokens
        self.tokens = self.saved = 0
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
        # A point that fails is not stopped, and one that was read before costs nothing.
        if phase != "gradient" and state != "FAIL" and tokens:
            self.saved += self.evaluation_tokens - tokens
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


def table(results: Results) -> list[dict[str, Any]]:
    """The history of every length's search with the seconds of each trial."""
    return [
        {**row, "seconds": seconds}
        for result in results.values()
        for row, seconds in zip(result.rows, result.seconds_of_rows, strict=True)
    ]


def _seed_perplexity(result: SearchResult) -> dict[str, float]:
    if result.seed_loss is None:
        return {}
    return {"seed_search_perplexity": result.seed_perplexity or math.exp(result.seed_loss)}


def search_metrics(results: Results) -> dict[str, Any]:
    """Search-split perplexity, the fitness's own loss (nats) and cost by length."""
    metrics: dict[str, Any] = {}
    for length, result in results.items():
        trials = [row for row in result.rows if row["phase"] == "evolution"]
        metrics[f"at_{length}"] = {
            "search_perplexity": result.perplexity or math.exp(result.loss),
            "search_loss": result.loss,
            **_seed_perplexity(result),
            "gradient_steps": sum(row["phase"] == "gradient" for row in result.rows),
            "trials": len(trials),
            "generations": len({row["generation"] for row in trials}),
            "stopped_early": sum(row["state"] == "PRUNED" for row in trials),
            "failed": sum(row["state"] == "FAIL" for row in result.rows),
            "seconds": round(result.seconds, 2),
            "forward_tokens": result.forward_tokens,
            "saved_tokens": result.saved_tokens,
            "attention_factor": result.best.attention_factor,
            "n_hat": result.best.n_hat,
            "largest_factor": max(result.best.factors),
        }
    return metrics
