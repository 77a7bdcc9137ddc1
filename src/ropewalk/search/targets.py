"""The extension's three searches: for the first target, for the second on top of it, and for short inputs again."""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch

from ropewalk.config import FitnessConfig, SearchConfig, SearchTargetConfig
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.store import TokenStore
from ropewalk.files import text_hash
from ropewalk.memory_advice import search_advice
from ropewalk.models.memory import within_memory
from ropewalk.rope import RopeScaling, RotaryShape, methods, rotary_shape
from ropewalk.rope.length_switch import interpolated
from ropewalk.rope.scaling import su_attention_factor
from ropewalk.search.fitness import NO_LOSS, Fitness, Part, answerable
from ropewalk.search.history import Results, SearchResult
from ropewalk.search.space import N_HATS, CriticalSpace, SearchSpace
from ropewalk.search.study import Search
from ropewalk.search.token_weights import WeightedRows, weighted_rows
from ropewalk.workers import device_of, run_workers

_RECALL_TOKENS = 1024
"""Largest number of tokens in the rows that show whether a model repeats facts at all."""


@dataclass(frozen=True)
class TargetSearch:
    """Searches one length after another on the documents of a search split, each from the result of the one before.

    Args:
        load: loads the model; every worker calls it once.
        load_tokenizer: needed by a fitness with needles only.
        original_length: the model's own window L0, in tokens.
        name: name of the studies in a shared storage, to which the length is added.
    """

    load: Callable[[], Any]
    store: TokenStore
    config: SearchConfig
    target: SearchTargetConfig
    original_length: int
    seed: int
    state_folder: Path
    label: str
    load_tokenizer: Callable[[], Any] | None = None
    name: str = "rescale-factors"
    worker: int = 0

    @cached_property
    def model(self) -> Any:
        device = device_of(self.worker)
        # Code that loads to the current accelerator then uses this worker's.
        selected = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        advice = f"lower search.workers, found {self.config.workers}, or take model.dtype=bfloat16"
        with selected, within_memory(advice):
            return self.load().to(device)

    @cached_property
    def model_hash(self) -> str:
        digest = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def study_name(self, length: int) -> str:
        return f"{self.name} {length}"

    @property
    def shape(self) -> RotaryShape:
        return replace(rotary_shape(self.model), original_length=self.original_length)

    def first(self, start_scaling: RopeScaling | None = None) -> Results:
        """Factors from the original window to each length (paper §3.2), or on top of the checkpoint's scaling.

        Raises:
            FileNotFoundError: one of search.starts does not exist.
            ValueError: one of search.starts holds no factors for this model, or does not go with ``start_scaling``.
        """
        if start_scaling and self.config.starts:
            raise ValueError(
                f"search.starts must be empty where a checkpoint's own scaling is extended, found {self.config.starts}"
            )
        return self._together(TargetSearch._lengthen, start_scaling)

    def second(self, first: RopeScaling) -> Results:
        """Factors from ``first``'s target to each length, on top of ``first`` (paper §3.3)."""
        return self._on_extended._together(TargetSearch._lengthen, first)

    def recover(self, extended: RopeScaling, of_checkpoint: Sequence[RopeScaling] = ()) -> Results:
        """Factors for inputs that are short again, none above the largest of ``extended`` (paper §3.3).

        The checkpoint's scalings are among the first points, as plain RoPE is.
        """
        return self._on_extended._together(TargetSearch._recover, extended, *of_checkpoint)

    @property
    def _on_extended(self) -> Self:
        """The search on a model that is already extended and trained to retrieve: all tokens of a text count alike."""
        fitness = self.config.fitness
        if fitness.text_weight:
            fitness = replace(fitness, needles=0, needle_weight=0.0, copied_weight=0.0)
        config = replace(self.config, fitness=fitness, query_scales="none", double_length_every=None)
        return replace(self, config=config)

    def _together(self, search: Callable[..., Results], *scalings: RopeScaling | None) -> Results:
        """Run ``search`` as worker 0, together with the other workers of this machine, and return its results."""
        # The others get a copy, which has not loaded the model.
        others = partial(_join, replace(self), search, scalings)
        return run_workers(self.config.workers, partial(self._run, search, scalings), others)

    def _run(self, search: Callable[..., Results], scalings: tuple[RopeScaling | None, ...]) -> Results:
        with within_memory(search_advice(self.config)):
            return search(self, *scalings)

    def _recover(self, extended: RopeScaling, *of_checkpoint: RopeScaling) -> Results:
        results: Results = {}
        plain = replace(extended, factors=(1.0,) * len(extended.factors), attention_factor=1.0, n_hat=0)
        for length in self.target.lengths:
            starts = [plain, *of_checkpoint, extended, *(results[shorter].best for shorter in results)]
            space = self._space(SearchSpace, self.shape.original_length, max(length, self.shape.original_length))
            upper = max(max(extended.factors), 1.0 + space.step)
            space = replace(space, upper=upper, query_scales=extended.query_scales)
            results[length] = self._search(length, space, None, starts)
        return results

    def _lengthen(self, first: RopeScaling | None) -> Results:
        results: Results = {}
        window = first.target_length if first else self.shape.original_length
        start_attention_factor = first.attention_factor if first else 1.0
        relative: RopeScaling | None = None
        file_scalings = [] if first else self._scalings_from_files()
        for length in self.target.lengths:
            space = self._space(CriticalSpace if self.config.critical else SearchSpace, window, length)
            space = replace(space, query_scales=relative.query_scales if relative else None)
            file_starts = [scaling for scaling in file_scalings if scaling.target_length == length]
            starts = [space.start(), *file_starts] if file_starts else []
            if first is not None:
                # The temperature belongs to the whole extension, not to this step of it.
                points = (*space.published(), space.start(), space.apply(methods.ntk, multiple=2.0))
                starts = [replace(point, attention_factor=first.attention_factor) for point in points]
                if window > (original := first.original_length):
                    plain = RopeScaling((1.0,) * space.pairs, original, original)
                    continued = interpolated((original, plain), (window, first), length=length)
                    starts.append(continued.relative_to(first))
            if relative is not None:
                unchanged = RopeScaling((1.0,) * space.pairs, window, window, attention_factor=start_attention_factor)
                shorter = (relative.target_length, relative)
                starts += [relative, interpolated((window, unchanged), shorter, length=length)]
            # Weights hold one set of query scales, so longer lengths use those of the first length.
            results[length] = self._search(length, space, first, starts, file_starts, learns_scales=relative is None)
            best = results[length].best
            relative = best.relative_to(first) if first else best
        return results

    def _scalings_from_files(self) -> list[RopeScaling]:
        """The scalings of the files that search.starts names."""
        return [
            RopeScaling.from_file(
                path,
                rotary_dim=self.shape.rotary_dim,
                original_length=self.shape.original_length,
                target_length=self.target.lengths[-1],
                key="search.starts",
            )
            for path in self.config.starts
        ]

    def _space(self, kind: type[SearchSpace], window: int, length: int) -> SearchSpace:
        ratio = length / window
        su = su_attention_factor(length / self.shape.original_length, self.shape.original_length)
        low, high = self.config.attention_factor or (su, su)
        return kind(
            rotary_dim=self.shape.rotary_dim,
            base=self.shape.base,
            original_length=window,
            target_length=length,
            upper=2 * ratio if kind is CriticalSpace else self.config.upper_ratio * ratio,
            step=self.config.step,
            attention_factors=(low, high),
            n_hats=tuple(n for n in N_HATS if n <= self.shape.original_length),
        )

    def _search(
        self,
        length: int,
        space: SearchSpace,
        first: RopeScaling | None,
        starts: list[RopeScaling],
        file_starts: Sequence[RopeScaling] = (),
        *,
        learns_scales: bool = False,
    ) -> SearchResult:
        config, target, position = self.config, self.target, list(self.target.lengths).index(length)
        if target.trials is not None:
            config = replace(config, trials=target.trials[position])
        if target.gradient_steps is not None:
            config = replace(config, gradient_steps=target.gradient_steps[position])
        scales = config.query_scales if learns_scales else "none"
        config = replace(config, fitness=self._fitness_config(space, first), query_scales=scales)
        fitness, documents = self._fitness(length, config.fitness, space, first), target.documents or config.documents
        every = config.double_length_every if self.store.longest >= 2 * length - 2 else None
        drawn = partial(Segments, self.store, batch_size=config.gradient_batch_size, steps=config.gradient_steps)
        segments = [drawn(length=length * factor, seed=self.seed) for factor in ((1, 2) if every else (1,))]

        def batch(step: int) -> WeightedRows:
            rows = segments[-1 if every and (step + 1) % every == 0 else 0].step(step).ids
            return self._weighted(rows, config.fitness, space, self.seed, length, step)

        search = Search(
            fitness=fitness,
            batch=batch,
            double_length_every=every,
            space=space,
            config=config,
            seed=self.seed,
            state_folder=self.state_folder / str(length),
            starts=tuple(starts),
            name=self.study_name(length),
            identity={
                "model_hash": self.model_hash,
                "documents": [self.store.names[index] for index in self.store.long_documents(length - 1)[:documents]],
                "documents_hash": self.store.hash,
                "starts": [text_hash(start.to_json()) for start in file_starts],
            },
            worker=self.worker,
            label=f"{self.label} for {length:,} tokens",
        )
        result = search.run()
        if self.worker > 0:  # nobody looks at its result
            return result
        if failed := sum(row["state"] == "FAIL" for row in result.rows):
            print(f"{search.label}: {failed} of {len(result.rows)} candidates failed: {NO_LOSS}", file=sys.stderr)
        if config.fitness.is_perplexity and config.fitness.lengths == [1.0]:
            return result
        # Results of another fitness are compared by perplexity.
        plain = Fitness(self.model, (Part(self._documents(length)),), batch_tokens=config.batch_tokens)
        gradient = None if result.gradient is None else math.exp(plain(result.gradient))
        return replace(result, perplexity=math.exp(plain(result.best)), gradient_perplexity=gradient)

    def _documents(self, length: int) -> torch.Tensor:
        """(documents, length) token ids that the fitness reads."""
        return torch.from_numpy(
            self.store.first_tokens(length, documents=self.target.documents or self.config.documents)
        )

    def _fitness_config(self, space: SearchSpace, first: RopeScaling | None) -> FitnessConfig:
        """The fitness, without needles for a model that does not repeat facts within the window it was trained at."""
        length, documents = min(space.original_length, _RECALL_TOKENS), self.target.documents or self.config.documents
        rows = torch.from_numpy(self.store.first_tokens(length, documents=documents))
        plain = RopeScaling((1.0,) * space.pairs, space.original_length, space.original_length)
        scaling, label = first.then(plain) if first else plain, self.label if self.worker == 0 else None
        return answerable(self.config.fitness, self.model, scaling, rows, self._tokenizer, seed=self.seed, label=label)

    def _fitness(self, length: int, fitness: FitnessConfig, space: SearchSpace, first: RopeScaling | None) -> Fitness:
        config, whole = self.config, self._documents(length)
        parts = []
        for share, weight in zip(fitness.lengths, fitness.weights, strict=True):
            weighted = self._weighted(whole[:, : max(2, round(share * length))], fitness, space, self.seed)
            parts.append(Part(weighted.rows, weight / sum(fitness.weights), weighted.weights))
        lengths = ", ".join(f"{part.rows.shape[1]:,}" for part in parts)
        return Fitness(
            self.model,
            tuple(parts),
            first,
            batch_tokens=config.batch_tokens,
            blocks=config.race.blocks,
            shorter=tuple(config.race.shorter),
            seed=self.seed,
            protocol=f"mean loss over {fitness.judged}, "
            f"one pass over the first {lengths} tokens of {len(whole)} documents",
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return self.load_tokenizer() if self.load_tokenizer and self.config.fitness.needles else None

    def _weighted(self, rows: torch.Tensor, fitness: FitnessConfig, space: SearchSpace, *seed: int) -> WeightedRows:
        return weighted_rows(rows, fitness, tokenizer=self._tokenizer, window=space.original_length, seed=seed)


def _join(
    targets: TargetSearch, search: Callable[..., Results], scalings: tuple[RopeScaling | None, ...], worker: int
) -> None:
    replace(targets, worker=worker)._run(search, scalings)
