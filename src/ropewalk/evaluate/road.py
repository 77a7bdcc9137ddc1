"""What the whole road is measured by: base model, fine-tuned model and control under our factors and every baseline."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.baselines import METHODS, variants, variants_on, variants_trained
from ropewalk.evaluate.compare import Reading
from ropewalk.evaluate.passkey import accuracy, passkey_accuracy
from ropewalk.evaluate.perplexity import DocumentSet
from ropewalk.evaluate.rivals import rival_paths
from ropewalk.models.base import load_model
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
    ALL: ClassVar[tuple[str, ...]] = (*METHODS, "longrope")

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(self.ALL):
            raise ValueError(f"rope.methods: unknown {sorted(unknown)}; allowed are {', '.join(self.ALL)}")

    @classmethod
    def read(cls, factors: Path, base: dict[str, Any], config: EvaluateConfig, *, methods: tuple[str, ...]) -> Self:
        """From the files of the search and recover stages."""
        first = RopeScaling.from_json((factors / "first.json").read_text())
        switch = switch_from_json((factors / "recovered.json").read_text())
        return cls(
            RotaryShape(base["rotary_dim"], base["base"], base["original_length"]), first, switch, config, methods
        )

    @property
    def window(self) -> int:
        return self.shape.original_length

    @property
    def plain(self) -> RopeScaling:
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
        target = self.first.target_length
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
                    for variant in variants(method, self.shape, length=length, target=max(length, target)):
                        yield Reading("base", method, variant.label, variant.scaling, length, documents)
                goal = max(self.switch[-1][0], length) if length > target else target
                for variant in variants_on(method, self.shape, self.first, length=length, target=goal):
                    yield Reading("finetuned", method, variant.label, variant.scaling, length, documents)
                if method in TRAINED:
                    for variant in variants_trained(method, self.shape, length=length, target=target):
                        yield Reading(f"rival_{method}", method, variant.label, variant.scaling, length, documents)
            if "longrope" in self.methods:
                if on_base and length <= target:
                    yield Reading("base", "ours", "searched", self.first, length, documents)
                scaling = scaling_for_length(self.switch, length)
                yield Reading("finetuned", "ours", f"for up to {self._up_to(length)}", scaling, length, documents)
        if long is not None and "longrope" in self.methods:
            # The same documents as at the longer lengths, for their ratio.
            yield Reading("finetuned", "ours", f"for up to {target}", self.first, target, long)

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

    def passkeys(self, models: dict[str, Any], tokenizer: Any, *, seed: int) -> list[dict[str, Any]]:
        """Passkey rows: the fine-tuned model at every length, the base model up to the first target."""
        config, target = self.config, self.first.target_length
        first_only: LengthSwitch = ((target, self.first),)
        plain: LengthSwitch = ((target, self.plain),)
        jobs = []
        for length in config.passkey_lengths:
            if "longrope" in self.methods:
                jobs.append(("finetuned", "ours", self.switch, length))
            if length <= target and "none" in self.methods:
                jobs.append(("base", "none", plain, length))
            if self.window < length <= target and "longrope" in self.methods:
                jobs.append(("base", "ours", first_only, length))
        rows: list[dict[str, Any]] = []
        with Progress(jobs, desc="passkey", unit="length") as bar:
            for model, method, switch, length in bar:
                found = passkey_accuracy(
                    models[model],
                    tokenizer,
                    switch,
                    length=length,
                    depths=config.passkey_depths,
                    trials=config.passkey_trials if length <= target else config.passkey_long_trials,
                    seed=seed,
                )
                rows += [{"model": model, "method": method, **row} for row in found]
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


def load_models(base: dict[str, Any], checkpoints: Path, *, dtype: str) -> dict[str, Any]:
    """The models of `model_paths`."""
    return {name: load_model(path, dtype=dtype) for name, path in model_paths(base, checkpoints).items()}


def metrics(rows: Sequence[dict[str, Any]], passkey_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Best case of each model, method and length, and passkey accuracy by length."""
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
    return found
