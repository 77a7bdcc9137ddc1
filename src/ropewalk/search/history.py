"""The history of a search, step by step and trial by trial, and its result."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ropewalk.models.factors import Provenance
from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import NO_LOSS, Evaluation
from ropewalk.search.space import factor_params


@dataclass(frozen=True)
class SearchResult:
    best: RopeScaling
    """Composed with any earlier scaling: ready to put into the model."""
    loss: float
    """Nats per token on the search documents."""
    gradient: RopeScaling | None
    """The gradient's result alone (composed), to measure what evolution gained over it."""
    gradient_loss: float | None
    rows: list[dict[str, Any]]
    """One row per published method, gradient step, end of the gradient (phase learned) and trial: phase, length, trial,
    generation, state, reason of a failure, loss, best of the phase, best_so_far, tokens and the point. A trial that
    was not read whole has no loss. A gradient step reads other rows, so that its loss does not count to best_so_far."""
    seconds_of_rows: list[float | None]
    """Seconds of each row's trial; None for rows that are not timed on their own."""
    forward_tokens: int
    """Tokens read; a backward pass counts as two more forward passes."""
    saved_tokens: int
    """Tokens saved by stopping hopeless trials early, less the cost of early looks at shorter lengths."""
    seconds: float
    """Working time of all workers together."""
    record: dict[str, Any]
    """Model, data, protocol, space, settings and seed of the study."""
    budget: dict[str, Any]
    """Limits of the search: trials, tokens, patience."""
    perplexity: float | None = None
    """Perplexity of all tokens of the same documents, where the fitness is something else."""
    gradient_perplexity: float | None = None
    """The same under the gradient's result."""


Results = dict[int, SearchResult]
"""Results by target length."""


class History:
    """Rows of a search, with the best so far of each phase and the tokens paid so far.

    ``evaluation_tokens`` is the number of tokens that are read for a point that is not stopped early.
    """

    def __init__(self, *, length: int, evaluation_tokens: int) -> None:
        self.length, self.evaluation_tokens = length, evaluation_tokens
        self.tokens = self.saved = 0
        self.rows: list[dict[str, Any]] = []
        self.seconds: list[float | None] = []
        self._best: dict[str, float] = {}

    def add_read(self, phase: str, trial: int, point: RopeScaling, read: Evaluation) -> None:
        """Add a point that was read before the first trial."""
        state, reason = ("FAIL", NO_LOSS) if read.loss is None else ("COMPLETE", None)
        self.add(phase, trial, point, loss=read.loss, tokens=read.forward_tokens, state=state, reason=reason)

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
                **factor_params(point),
            }
        )


def table(results: Results) -> list[dict[str, Any]]:
    """The histories of all lengths, with the seconds of each trial."""
    return [
        {**row, "seconds": seconds}
        for result in results.values()
        for row, seconds in zip(result.rows, result.seconds_of_rows, strict=True)
    ]


def provenance(result: SearchResult, *, search: str, commit: str) -> Provenance:
    """The record of how factors were found, which is kept with them; ``search`` is the search's name in conf/search."""
    phases = Counter(row["phase"] for row in result.rows)
    return {
        "method": search,
        **result.record,
        "budget": result.budget,
        "trials": phases["evolution"],
        "gradient_steps": phases["gradient"],
        "forward_tokens": result.forward_tokens,
        "search_loss": result.loss,
        "commit": commit,
    }


def search_metrics(results: Results) -> dict[str, Any]:
    """Perplexity on the search split, loss of the fitness (nats) and cost, by length."""
    metrics: dict[str, Any] = {}
    for length, result in results.items():
        trials = [row for row in result.rows if row["phase"] == "evolution"]
        gradient = {}
        if result.gradient_loss is not None:
            gradient["gradient_search_perplexity"] = result.gradient_perplexity or math.exp(result.gradient_loss)
        metrics[f"at_{length}"] = {
            "search_perplexity": result.perplexity or math.exp(result.loss),
            "search_loss": result.loss,
            **gradient,
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
            "max_factor": max(result.best.factors),
        }
    return metrics
