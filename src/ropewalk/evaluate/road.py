"""What the whole road is measured by: base model, fine-tuned model and control under our factors and every baseline."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.baselines import METHODS, Variant, variants, variants_on, variants_trained
from ropewalk.evaluate.benchmarks import Questions, benchmark_row
from ropewalk.evaluate.cache import NO_CACHE, Cache, scaling_key, tokenizer_hash
from ropewalk.evaluate.compare import Reading
from ropewalk.evaluate.drawing import Draw, DrawnPrompts, needle_draws, passkey_draws
from ropewalk.evaluate.passkey import PROTOCOL as PASSKEY
from ropewalk.evaluate.passkey import accuracy, passkey_accuracy
from ropewalk.evaluate.perplexity import DocumentSet
from ropewalk.evaluate.recall import PROTOCOL as NEEDLES
from ropewalk.evaluate.recall import recall_rows
from ropewalk.evaluate.rivals import rival_paths
from ropewalk.models.base import load_model, own_scaling
from ropewalk.progress import Progress
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, scaling_for_length, switch_from_json
from ropewalk.rope.methods import TRAINED


@dataclass(frozen=True)
class Road:
    """The scalings that the earlier stages found, and the lengths they are for."""

    shape: RotaryShape
    first: RopeScaling
    switch: LengthSwitch
    """Of the fine-tuned model: recovered, first and second factors by input length."""
    config: EvaluateConfig
    methods: tuple[str, ...]
    """Some of ALL; longrope stands for the searched factors."""
    own: RopeScaling | None = None
    """The scaling that the checkpoint came with, where the road starts from it."""
    ALL: ClassVar[tuple[str, ...]] = (*METHODS, "longrope")

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(self.ALL):
            raise ValueError(f"rope.methods: unknown {sorted(unknown)}; allowed are {', '.join(self.ALL)}")

    @classmethod
    def read(cls, factors: Path, base: dict[str, Any], config: EvaluateConfig, *, methods: tuple[str, ...]) -> Self:
        """From the files of the search and recover stages."""
        first = RopeScaling.from_json((factors / "first.json").read_text())
        switch = switch_from_json((factors / "recovered.json").read_text())
        shape = RotaryShape(base["rotary_dim"], base["base"], base["original_length"])
        return cls(shape, first, switch, config, methods, own_scaling(base))

    @property
    def window(self) -> int:
        """Of the base model as it came, tokens."""
        return self.own.target_length if self.own else self.shape.original_length

    @property
    def trained(self) -> RopeScaling:
        """What the fine-tuned model was trained under: ``first``, unless that was learned further."""
        return scaling_for_length(self.switch, self.first.target_length)

    @property
    def plain(self) -> RopeScaling:
        """What the base model came with: plain RoPE, or its own scaling."""
        if self.own:
            return replace(self.own, method="none")
        return RopeScaling((1.0,) * len(self.first.factors), self.window, self.first.target_length, method="none")

    def document_sets(self, store: TokenStore) -> tuple[DocumentSet, DocumentSet | None]:
        """(all test documents as long as the first target, those as long as the longest length)."""
        longest = max(self.config.lengths)
        short = DocumentSet.of("all", store, length=self.first.target_length, documents=self.config.documents)
        if longest <= self.first.target_length:
            return short, None
        return short, DocumentSet.of("long", store, length=longest, documents=self.config.long_documents)

    def readings(self, store: TokenStore) -> Iterator[Reading]:
        """Every figure of the report's perplexity tables."""
        short, long = self.document_sets(store)
        target, from_files = self.first.target_length, self._from_files()
        yield Reading("control", "none", "plain", self.plain, self.window, short)
        yield Reading("base", "none", "plain", self.plain, self.window, short)
        for length in self.config.lengths:
            documents = short if length <= target else long
            assert documents is not None
            on_base = length in self.config.base_lengths
            for method in METHODS:
                if method not in self.methods:
                    continue
                if on_base and (method, length) != ("none", self.window):
                    # Beyond the first target nothing is claimed of the base model: s of this length only.
                    for variant in self._on_base(method, length=length, target=max(length, target)):
                        yield Reading("base", method, variant.label, variant.scaling, length, documents)
                goal = max(self.switch[-1][0], length) if length > target else target
                for variant in variants_on(method, self.shape, self.trained, length=length, target=goal):
                    yield Reading("finetuned", method, variant.label, variant.scaling, length, documents)
                if method in TRAINED:
                    for variant in variants_trained(method, self.shape, length=length, target=target):
                        yield Reading(f"rival_{method}", method, variant.label, variant.scaling, length, documents)
            for name, scaling in from_files if on_base and length <= target else ():
                yield Reading("base", name, "as in its file", scaling, length, documents)
            if "longrope" in self.methods:
                if on_base and length <= target:
                    yield Reading("base", "ours", "searched", self.first, length, documents)
                scaling = scaling_for_length(self.switch, length)
                yield Reading("finetuned", "ours", f"for up to {self._up_to(length)}", scaling, length, documents)
        if long is not None and "longrope" in self.methods:
            # The same documents as at the longer lengths, for their ratio.
            yield Reading("finetuned", "ours", f"for up to {target}", self.trained, target, long)

    def _from_files(self) -> list[tuple[str, RopeScaling]]:
        """(name, factors) of evaluate.factors."""
        read = partial(
            RopeScaling.from_file,
            rotary_dim=self.shape.rotary_dim,
            original_length=self.shape.original_length,
            target_length=self.first.target_length,
            key="evaluate.factors",
        )
        found = {Path(path).stem: read(path) for path in self.config.factors}
        if len(found) < len(self.config.factors) or found.keys() & {*self.ALL, "ours", "seed"}:
            raise ValueError(
                "evaluate.factors must be files of different names, none of them a method's, "
                f"found {self.config.factors}"
            )
        return list(found.items())

    def _on_base(self, method: str, *, length: int, target: int) -> list[Variant]:
        if self.own is None:
            return variants(method, self.shape, length=length, target=target)
        return variants_on(method, self.shape, self.own, length=length, target=target, name="the checkpoint's factors")

    def _up_to(self, length: int) -> int:
        return next((up_to for up_to, _ in self.switch if length <= up_to), self.switch[-1][0])

    def factor_rows(self) -> list[dict[str, Any]]:
        """Rescale factors by pair: ours by input length, and the published methods' for the first target."""
        profiles = {f"ours, up to {up_to:,}": scaling for up_to, scaling in self.switch}
        for method in ("pi", "ntk", "yarn"):
            target = self.first.target_length
            profiles[method] = variants(method, self.shape, length=target, target=target)[0].scaling
        return [
            {"factors_of": name, "pair": pair, "lambda": factor}
            for name, scaling in profiles.items()
            for pair, factor in enumerate(scaling.factors)
        ]

    def _readers(self, length: int) -> Iterator[tuple[str, str, LengthSwitch]]:
        """(model, method, scaling by length): the fine-tuned model, and up to the first target the base model."""
        target = self.first.target_length
        if "longrope" in self.methods:
            yield "finetuned", "ours", self.switch
        if length <= target and "none" in self.methods:
            yield "base", "none", ((target, self.plain),)
        if self.window < length <= target and "longrope" in self.methods:
            yield "base", "ours", ((target, self.first),)

    def passkeys(
        self, models: dict[str, Any], prompts: DrawnPrompts, *, seed: int, cache: Cache = NO_CACHE
    ) -> list[dict[str, Any]]:
        """Passkey rows: the fine-tuned model at every length, the base model up to the first target."""
        draws = list(passkey_draws(self.config, target=self.first.target_length, seed=seed))
        return self._recall(draws, passkey_accuracy, models, prompts, name="passkey", task=PASSKEY, cache=cache)

    def needles(
        self, models: dict[str, Any], prompts: DrawnPrompts, *, seed: int, cache: Cache = NO_CACHE
    ) -> list[dict[str, Any]]:
        """Rows of every needle family at every needle length."""
        draws = list(needle_draws(self.config, seed=seed))
        return self._recall(draws, recall_rows, models, prompts, name="needles", task=NEEDLES, cache=cache)

    def _recall(
        self,
        draws: Sequence[Draw],
        rows_of: Callable[..., list[dict[str, Any]]],
        models: dict[str, Any],
        prompts: DrawnPrompts,
        *,
        name: str,
        task: str,
        cache: Cache,
    ) -> list[dict[str, Any]]:
        jobs = [(draw, *reader) for draw in draws for reader in self._readers(draw.length)]
        names = tokenizer_hash(prompts.tokenizer)
        rows: list[dict[str, Any]] = []
        with Progress(jobs, desc=name, unit="task") as bar:
            for draw, model, method, switch in bar:
                made = prompts.of(draw)
                scaling = scaling_key(scaling_for_length(switch, draw.length))
                about = {"task": task, "tokenizer": names, "scaling": scaling, "prompts": made.hash}
                measure = partial(
                    rows_of, models[model], prompts.tokenizer, switch, made, chunk=self.config.chunk_tokens
                )
                found = cache.kept(model, about, measure)
                rows += [{"model": model, "method": method, **row} for row in found]
        return rows

    def benchmarks(self, models: dict[str, Any], tokenizer: Any, *, cache: Cache = NO_CACHE) -> list[dict[str, Any]]:
        """Rows of every general benchmark: original window against extended, factors by length and without recovery."""
        own, target = self.config.benchmarks, self.first.target_length
        ways: list[tuple[str, str, str, LengthSwitch, int]] = []
        if "none" in self.methods:
            ways.append(("base", "none", "original", ((self.window, self.plain),), self.window))
        if "longrope" in self.methods:
            ways.append(("finetuned", "ours", "extended", ((target, self.first),), target))
            ways.append(("finetuned", "ours", "recovered", self.switch, target))
        rows = []
        jobs = [(task, *way) for task in own.tasks for way in ways]
        with Progress(jobs, desc="benchmarks", unit="task") as bar:
            for task, model, method, factors, switch, length in bar:
                questions = Questions(task, own.path, own.limit, own.shots.get(task))
                about = {
                    "task": f"{task} {questions.examples} shots",
                    "tokenizer": tokenizer_hash(tokenizer),
                    "scaling": scaling_key(switch),
                    "length": length,
                    "limit": own.limit,
                    "questions": questions.source,
                }
                measure = partial(benchmark_row, models[model], tokenizer, switch, questions, max_length=length)
                rows.append({"model": model, "method": method, "factors": factors, **cache.kept(model, about, measure)})
        return rows


def with_seed(road: Road, store: TokenStore, path: Path, models: dict[str, Any]) -> Iterator[Reading]:
    """The road's readings, and the gradient's own result on the base model, to tell what evolution gained over it."""
    yield from (reading for reading in road.readings(store) if reading.model in models)
    if "longrope" in road.methods and path.is_file():
        seed = RopeScaling.from_json(path.read_text())
        documents, _ = road.document_sets(store)
        yield Reading("base", "seed", "gradient alone", seed, seed.target_length, documents)


def model_paths(base: dict[str, Any], checkpoints: Path) -> dict[str, str]:
    """Of the base model, the fine-tuned one, and the control and the rivals where they were trained."""
    paths = {"base": base["path"], "finetuned": str(checkpoints / "finetune_second")}
    if (checkpoints / "control" / "config.json").is_file():
        paths["control"] = str(checkpoints / "control")
    return paths | rival_paths(checkpoints)


def load_models(base: dict[str, Any], checkpoints: Path, **loading: Any) -> dict[str, Any]:
    """The models of `model_paths`; ``loading`` is `load_model`'s."""
    return {name: load_model(path, **loading) for name, path in model_paths(base, checkpoints).items()}


def metrics(
    rows: Sequence[dict[str, Any]],
    passkey_rows: Sequence[dict[str, Any]],
    needle_rows: Sequence[dict[str, Any]] = (),
    benchmark_rows: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Best case of each model, method and length; passkey accuracy by length, needles by family, benchmarks by task."""
    found: dict[str, Any] = {}
    for row in rows:
        at = found.setdefault("perplexity", {}).setdefault(row["model"], {}).setdefault(row["method"], {})
        key = f"{row['length']}_{row['document_set']}"
        at[key] = min(row["perplexity"], at.get(key, math.inf))
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in passkey_rows:
        groups[row["model"], row["method"], row["length"]].append(row)
    for (model, method, length), own in groups.items():
        found.setdefault("passkey", {}).setdefault(model, {}).setdefault(method, {})[str(length)] = accuracy(own)
    for row in benchmark_rows:
        found.setdefault("benchmarks", {}).setdefault(row["task"], {})[row["factors"]] = row["score"]
    needles: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in needle_rows:
        needles[row["family"], row["model"], row["method"], row["length"]].append(row)
    for (family, model, method, length), own in needles.items():
        trials = sum(row["trials"] for row in own)
        at = found.setdefault("needles", {}).setdefault(family, {}).setdefault(model, {}).setdefault(method, {})
        for score in ("accuracy", "likelihood_accuracy"):
            at[f"{length}_{score}"] = sum(row[score] * row["trials"] for row in own) / trials
    return found
