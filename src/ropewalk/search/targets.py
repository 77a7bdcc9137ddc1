"""The road's three searches: for the first target, for the second on top of it, and for short inputs again."""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.store import TokenStore
from ropewalk.files import text_hash
from ropewalk.rope import RopeScaling, RotaryShape, methods, rotary_shape
from ropewalk.rope.scaling import su_attention_factor
from ropewalk.search.fitness import NO_LOSS, Fitness, Part
from ropewalk.search.history import Results, SearchResult
from ropewalk.search.memory import within_memory
from ropewalk.search.needles import needle_rows
from ropewalk.search.space import N_HATS, CriticalSpace, SearchSpace
from ropewalk.search.study import Search
from ropewalk.search.workers import device_of, finished, others, set_threads


@dataclass(frozen=True)
class TargetSearch:
    """Searches one length after another on the documents of a search split.

    Each length starts from the last one's result.

    Args:
        load: loads the model; every worker calls it once.
        load_tokenizer: needed by a fitness with needles only.
        original_length: the model's own window L0, in tokens.
        name: of the study in a shared storage, the length is added.
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
    worker: int = field(default=0)

    @cached_property
    def model(self) -> Any:
        device = device_of(self.worker)
        # What loads to "the" accelerator takes this worker's own.
        own = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with own, within_memory(f"lower search.workers, found {self.config.workers}, or take model.dtype=bfloat16"):
            return self.load().to(device)

    @cached_property
    def model_hash(self) -> str:
        digest = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> RotaryShape:
        return replace(rotary_shape(self.model), original_length=self.original_length)

    def first(self, own: RopeScaling | None = None) -> Results:
        """Factors from the original window to each length (paper §3.2), or on top of the checkpoint's ``own``.

        Raises:
            FileNotFoundError: one of search.starts is not there.
            ValueError: one holds no factors for this model.
        """
        if own and self.config.starts:
            raise ValueError(
                f"search.starts must be empty where a checkpoint's own scaling is extended, found {self.config.starts}"
            )
        return self._together("_first", *([own] if own else []))

    def second(self, first: RopeScaling) -> Results:
        """Factors from ``first``'s target to each length, on top of ``first`` (paper §3.3)."""
        return self._together("_second", first)

    def recover(self, extended: RopeScaling, own: Sequence[RopeScaling] = ()) -> Results:
        """Factors for inputs that are short again, none above the extended model's largest (paper §3.3).

        ``own`` are the checkpoint's, which are read first as plain RoPE is.
        """
        return self._together("_recover", extended, *own)

    def _together(self, part: str, *scalings: RopeScaling) -> Results:
        """Worker 0's part, while the other workers of this machine do theirs."""
        count = self.config.workers
        # A copy, which has not loaded the model.
        with others(count - 1, partial(_join, replace(self), part, scalings)) as company:
            set_threads(count)
            work: Callable[..., Results] = getattr(self, part)
            try:
                return work(*scalings)
            except MemoryError as error:
                if not company:
                    raise
                print(f"worker 0: {error}; the others go on", file=sys.stderr)
                if not finished(company):
                    raise
                return work(*scalings)  # what the others found

    def _first(self, own: RopeScaling | None = None) -> Results:
        return self._lengthen(own.target_length if own else self.shape.original_length, own)

    def _second(self, first: RopeScaling) -> Results:
        return self._lengthen(first.target_length, first)

    def _recover(self, extended: RopeScaling, *own: RopeScaling) -> Results:
        results: Results = {}
        plain = replace(extended, factors=(1.0,) * len(extended.factors), attention_factor=1.0, n_hat=0)
        for position, length in enumerate(self.target.lengths):
            starts = [plain, *own, extended, *(results[shorter].best for shorter in results)]
            space = self._space(SearchSpace, self.shape.original_length, max(length, self.shape.original_length))
            space = replace(space, upper=max(max(extended.factors), 1.0 + space.step))
            results[length] = self._search(position, length, space, None, starts)
        return results

    def _lengthen(self, window: int, first: RopeScaling | None) -> Results:
        results: Results = {}
        relative: RopeScaling | None = None
        given = [] if first else self._given()
        for position, length in enumerate(self.target.lengths):
            space = self._space(CriticalSpace if self.config.critical else SearchSpace, window, length)
            own = [scaling for scaling in given if scaling.target_length == length]
            starts = [space.start(), *own] if own else []
            if first is not None:
                doubled = space.made(methods.ntk, multiple=2.0)
                starts = space.starts_on_top(first.attention_factor)
                starts.append(replace(doubled, attention_factor=first.attention_factor))
            if relative is not None:
                more = np.log(space.target_length / window) / np.log(relative.target_length / window)
                stretched = tuple((np.asarray(relative.factors) ** more).tolist())
                starts += [relative, replace(relative, factors=stretched)]
            results[length] = self._search(position, length, space, first, starts, own)
            best = results[length].best
            factors = tuple(a / b for a, b in zip(best.factors, first.factors, strict=True)) if first else best.factors
            relative = replace(best, factors=factors, original_length=window, target_length=length)
        return results

    def _given(self) -> list[RopeScaling]:
        """What the files of search.starts hold."""
        shape, target = self.shape, self.target.lengths[-1]
        read = partial(
            RopeScaling.from_file,
            rotary_dim=shape.rotary_dim,
            original_length=shape.original_length,
            target_length=target,
            key="search.starts",
        )
        return [*map(read, self.config.starts)]

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
        position: int,
        length: int,
        space: SearchSpace,
        first: RopeScaling | None,
        starts: list[RopeScaling],
        given: Sequence[RopeScaling] = (),
    ) -> SearchResult:
        of_target = self.target
        config = replace(
            self.config,
            trials=self.config.trials if of_target.trials is None else of_target.trials[position],
            gradient_steps=(
                self.config.gradient_steps if of_target.gradient_steps is None else of_target.gradient_steps[position]
            ),
        )
        fitness = self._fitness(length, first)
        segments = Segments(
            self.store, length=length, rows=config.gradient_rows, steps=config.gradient_steps, seed=self.seed
        )
        search = Search(
            fitness=fitness,
            batch=lambda step: segments.step(step).ids,
            space=space,
            config=config,
            seed=self.seed,
            state_folder=self.state_folder / str(length),
            starts=tuple(starts),
            name=f"{self.name} {length}",
            identity={
                "model_hash": self.model_hash,
                "documents": self._names(length),
                "documents_hash": self.store.hash,
                "starts": [text_hash(start.to_json()) for start in given],
            },
            worker=self.worker,
            label=f"{self.label} for {length:,} tokens",
        )
        result = search.run()
        if self.worker > 0:  # whose result nobody looks at
            return result
        if failed := sum(row["state"] == "FAIL" for row in result.rows):
            print(f"{search.label}: {failed} of {len(result.rows)} candidates failed: {NO_LOSS}", file=sys.stderr)
        if not config.fitness.needles and config.fitness.lengths == [1.0]:
            return result
        # What is judged differently is compared by perplexity.
        plain = Fitness(self.model, (Part(self._documents(length)),), batch_tokens=config.batch_tokens)
        seed = None if result.seed is None else math.exp(plain(result.seed))
        return replace(result, perplexity=math.exp(plain(result.best)), seed_perplexity=seed)

    def _documents(self, length: int) -> torch.Tensor:
        """(documents, length) token ids that the fitness reads."""
        return torch.from_numpy(
            self.store.first_tokens(length, documents=self.target.documents or self.config.documents)
        )

    def _names(self, length: int) -> list[str]:
        """Of the documents that the fitness reads."""
        wanted = self.target.documents or self.config.documents
        return [self.store.names[index] for index in self.store.long_documents(length - 1)[:wanted]]

    def _fitness(self, length: int, first: RopeScaling | None) -> Fitness:
        config, fitness = self.config, self.config.fitness
        whole = self._documents(length)
        tokenizer = self.load_tokenizer() if fitness.needles and self.load_tokenizer else None
        parts: list[Part] = []
        for share, weight in zip(fitness.lengths, fitness.weights, strict=True):
            rows, asked = whole[:, : max(2, round(share * length))], None
            if tokenizer is not None:
                rows, asked = needle_rows(rows, tokenizer, needles=fitness.needles, seed=self.seed)
            parts.append(Part(rows, weight / sum(fitness.weights), asked))
        judged = f"the answers to {fitness.needles} questions a document" if fitness.needles else "all tokens"
        lengths = ", ".join(f"{part.rows.shape[1]:,}" for part in parts)
        return Fitness(
            self.model,
            tuple(parts),
            first,
            batch_tokens=config.batch_tokens,
            blocks=config.race.blocks,
            shorter=tuple(config.race.shorter),
            seed=self.seed,
            protocol=f"mean loss over {judged}, one pass over the first {lengths} tokens of {len(whole)} documents",
        )


def _join(search: TargetSearch, part: str, scalings: tuple[RopeScaling, ...], worker: int) -> None:
    set_threads(search.config.workers)
    getattr(replace(search, worker=worker), part)(*scalings)
