"""The road's three searches: for the first target, for the second on top of it, and for short inputs again."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.store import TokenStore
from ropewalk.rope import RopeScaling, RotaryShape, rotary_shape
from ropewalk.search.fitness import Fitness
from ropewalk.search.space import N_HATS, SearchSpace
from ropewalk.search.study import SearchResult, run_search


@dataclass(frozen=True)
class TargetSearch:
    """Searches one length after another on the documents of a search split.

    Each length starts from the last one's result.
    """

    model: Any
    store: TokenStore
    config: SearchConfig
    target: SearchTargetConfig
    original_length: int
    """The model's own window L0, in tokens."""
    seed: int
    state_folder: Path
    label: str

    @property
    def shape(self) -> RotaryShape:
        return replace(rotary_shape(self.model), original_length=self.original_length)

    def first(self) -> dict[int, SearchResult]:
        """Factors from the original window to each length (paper §3.2)."""
        return self._lengthen(self.shape.original_length, None)

    def second(self, first: RopeScaling) -> dict[int, SearchResult]:
        """Factors from ``first``'s target to each length, on top of ``first`` (paper §3.3)."""
        return self._lengthen(first.target_length, first)

    def recover(self, extended: RopeScaling) -> dict[int, SearchResult]:
        """Factors for inputs that are short again, none above the extended model's largest (paper §3.3)."""
        results: dict[int, SearchResult] = {}
        plain = replace(extended, factors=(1.0,) * len(extended.factors), attention_factor=1.0, n_hat=0)
        for position, length in enumerate(self.target.lengths):
            starts = [plain, extended, *(results[shorter].best for shorter in results)]
            space = self._space(self.shape.original_length, max(length, self.shape.original_length))
            space = replace(space, upper=max(max(extended.factors), 1.0 + space.step))
            results[length] = self._search(position, length, space, None, starts)
        return results

    def _lengthen(self, window: int, first: RopeScaling | None) -> dict[int, SearchResult]:
        results: dict[int, SearchResult] = {}
        relative: RopeScaling | None = None
        for position, length in enumerate(self.target.lengths):
            space = self._space(window, length)
            if first is not None:
                # YaRN's and the first search's temperature belong to the whole extension, not to the second step.
                starts = [replace(point, attention_factor=first.attention_factor) for point in space.published()]
                doubled = space.ntk(multiple=2.0)
                starts.append(replace(doubled, attention_factor=first.attention_factor))
            else:
                starts = []
            if relative is not None:
                more = np.log(space.target_length / window) / np.log(relative.target_length / window)
                stretched = tuple((np.asarray(relative.factors) ** more).tolist())
                starts += [relative, replace(relative, factors=stretched)]
            results[length] = self._search(position, length, space, first, starts)
            best = results[length].best
            factors = tuple(a / b for a, b in zip(best.factors, first.factors, strict=True)) if first else best.factors
            relative = replace(best, factors=factors, original_length=window, target_length=length)
        return results

    def _space(self, window: int, length: int) -> SearchSpace:
        return SearchSpace(
            rotary_dim=self.shape.rotary_dim,
            base=self.shape.base,
            original_length=window,
            target_length=length,
            upper=self.config.upper_ratio * length / window,
            attention_factors=(self.config.attention_factor[0], self.config.attention_factor[1]),
            n_hats=tuple(n for n in N_HATS if n <= self.shape.original_length),
        )

    def _search(
        self, position: int, length: int, space: SearchSpace, first: RopeScaling | None, starts: list[RopeScaling]
    ) -> SearchResult:
        of_target = self.target
        config = replace(
            self.config,
            trials=self.config.trials if of_target.trials is None else of_target.trials[position],
            gradient_steps=(
                self.config.gradient_steps if of_target.gradient_steps is None else of_target.gradient_steps[position]
            ),
        )
        documents = self.target.documents or self.config.documents
        rows = torch.from_numpy(self.store.first_tokens(length, documents=documents))
        segments = Segments(
            self.store, length=length, rows=config.gradient_rows, steps=config.gradient_steps, seed=self.seed
        )
        return run_search(
            self.model,
            fitness=Fitness(self.model, rows, first),
            batch=segments.step,
            space=space,
            config=config,
            seed=self.seed,
            state_folder=self.state_folder / str(length),
            starts=tuple(starts),
            label=f"{self.label} for {length:,} tokens",
        )


def table(results: dict[int, SearchResult]) -> list[dict[str, Any]]:
    """The history of every length's search, one row per gradient step and trial."""
    return [row for result in results.values() for row in result.rows]


def search_metrics(results: dict[int, SearchResult]) -> dict[str, Any]:
    """Search-split perplexity and cost by length."""
    metrics: dict[str, Any] = {}
    for length, result in results.items():
        trials = [row for row in result.rows if row["phase"] == "evolution"]
        metrics[f"at_{length}"] = {
            "search_perplexity": math.exp(result.loss),
            **({"seed_search_perplexity": math.exp(result.seed_loss)} if result.seed_loss is not None else {}),
            "gradient_steps": sum(row["phase"] == "gradient" for row in result.rows),
            "trials": len(trials),
            "generations": len({row["generation"] for row in trials}),
            "forward_tokens": result.forward_tokens,
            "attention_factor": result.best.attention_factor,
            "n_hat": result.best.n_hat,
            "largest_factor": max(result.best.factors),
        }
    return metrics
