"""The measurements of an extension: base model, fine-tuned model and control under our factors and every baseline.

Where no weight was changed, the base model under our factors is the extended model, at every length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.baselines import Variant, variants, variants_on, variants_trained
from ropewalk.evaluate.benchmarks import Questions, benchmark_row
from ropewalk.evaluate.cache import NO_CACHE, Cache, scaling_key, tokenizer_hash
from ropewalk.evaluate.compare import PerplexityTask
from ropewalk.evaluate.passkey import passkey_accuracy
from ropewalk.evaluate.passkey import protocol as passkey_protocol
from ropewalk.evaluate.perplexity import DocumentSet, DocumentSets
from ropewalk.evaluate.prompt_sets import Draw, PromptSets
from ropewalk.evaluate.prompts import PASSKEY_FORMS
from ropewalk.evaluate.recall import PROTOCOL as NEEDLES
from ropewalk.evaluate.recall import recall_rows
from ropewalk.models.base import BaseModel, extended_path
from ropewalk.models.factors import FactorsByLength, SearchedFactors
from ropewalk.models.memory import within_memory
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape
from ropewalk.rope.methods import baselines, compared, trainable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Extension:
    """The scalings that the earlier stages made, and the lengths they are for."""

    shape: RotaryShape
    first: RopeScaling
    switch: LengthSwitch
    """Scalings of the extended model by input length: recovered, first and second factors."""
    config: EvaluateConfig
    methods: tuple[str, ...]
    """Some of `ropewalk.rope.methods.compared`; longrope stands for the searched factors."""
    start_scaling: RopeScaling | None = None
    """The scaling that the checkpoint came with, where the extension starts from it."""
    extended: str = "finetuned"
    """The model that reads under ``switch``: finetuned, or base where no weight was changed."""

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(compared()):
            raise ValueError(f"rope.methods: unknown {sorted(unknown)}; allowed are {', '.join(compared())}")

    @classmethod
    def read(cls, results: Path, base: BaseModel, config: EvaluateConfig, *, methods: tuple[str, ...]) -> Self:
        """From the files of the search, recover and fine-tuning stages below ``results``."""
        first = SearchedFactors.read(results / "factors" / "first.json").scaling
        switch = FactorsByLength.read(results / "factors" / "recovered.json").switch
        is_trained = extended_path(base, results / "checkpoints") != base.path
        extended = "finetuned" if is_trained else "base"
        return cls(base.shape, first, switch, config, methods, base.start_scaling, extended)

    @property
    def is_trained(self) -> bool:
        """Whether the extended model was fine-tuned; if not, it is the base model under our factors."""
        return self.extended != "base"

    @property
    def window(self) -> int:
        """Window of the base model as it came, tokens."""
        return self.start_scaling.target_length if self.start_scaling else self.shape.original_length

    @property
    def trained(self) -> RopeScaling:
        """What the fine-tuned model was trained under: ``first``, unless that was learned further."""
        return self.switch.for_length(self.first.target_length)

    @property
    def plain(self) -> RopeScaling:
        """What the base model came with: plain RoPE, or its own scaling."""
        if self.start_scaling:
            return replace(self.start_scaling, method="none")
        return RopeScaling((1.0,) * len(self.first.factors), self.window, self.first.target_length, method="none")

    @property
    def on_base(self) -> LengthSwitch:
        """The base model's scalings by length: its own in the window, then interpolated ones, up to our factors."""
        if not self.is_trained:
            return self.switch
        in_window = replace(self.plain, query_scales=self.first.query_scales)
        return LengthSwitch(((self.window, in_window), (self.first.target_length, self.first))).with_doublings

    def document_sets(self, store: TokenStore) -> DocumentSets:
        """(all test documents as long as the first target, those as long as the longest length)."""
        longest = max(self.config.lengths)
        short = DocumentSet.of("all", store, length=self.first.target_length, documents=self.config.documents)
        if longest <= self.first.target_length:
            return short, None
        return short, DocumentSet.of("long", store, length=longest, documents=self.config.long_documents)

    def judge(self, length: int) -> tuple[str, RopeScaling, RopeScaling]:
        """(model, scaling for whole documents of ``length`` tokens, scaling for the window) that choose key tokens.

        This is the fine-tuned model under its factors or, where nothing was trained, the base model under YaRN, so that
        the choice does not favour our factors over the published ones.
        """
        if self.is_trained:
            return self.extended, self.switch.for_length(length), self.switch.for_length(self.window)
        yarn, *_ = self._on_base("yarn", length=length, target=length)
        return self.extended, yarn.scaling, self.plain

    def perplexity_tasks(self, sets: DocumentSets) -> Iterator[PerplexityTask]:
        """Every figure of the report's perplexity tables, on the two ``sets`` of `document_sets`."""
        short, long = sets
        target, from_files = self.first.target_length, self._from_files()
        yield PerplexityTask("control", "none", "plain", self.plain, self.window, short)
        yield PerplexityTask("base", "none", "plain", self.plain, self.window, short)
        for length in self.config.lengths:
            documents = short if length <= target else long
            assert documents is not None
            on_base = length in self.config.base_lengths
            for method in (name for name in baselines() if name in self.methods):
                if on_base and (method, length) != ("none", self.window):
                    # Beyond the target, nothing is claimed about the base model, so s is for this length only.
                    for variant in self._on_base(method, length=length, target=max(length, target)):
                        yield PerplexityTask("base", method, variant.label, variant.scaling, length, documents)
                goal = max(self.switch.lengths[-1], length) if length > target else target
                tuned = variants_on(method, self.shape, self.trained, length=length, target=goal)
                for variant in tuned if self.is_trained else ():
                    yield PerplexityTask("finetuned", method, variant.label, variant.scaling, length, documents)
                if method in trainable():
                    for variant in variants_trained(method, self.shape, length=length, target=target):
                        model = f"baseline_{method}"
                        yield PerplexityTask(model, method, variant.label, variant.scaling, length, documents)
            for name, scaling in from_files if on_base and length <= target else ():
                yield PerplexityTask("base", name, "as in its file", scaling, length, documents)
            if "longrope" in self.methods:
                if (on_base and length <= target) or not self.is_trained:
                    up_to, scaling = self.on_base.entry_for(length)
                    yield PerplexityTask("base", "ours", f"for up to {up_to}", scaling, length, documents)
                    if scaling != self.first:
                        # What software with one set of factors applies at every length.
                        yield PerplexityTask("base", "ours", f"for up to {target}", self.first, length, documents)
                if self.is_trained:
                    up_to, scaling = self.switch.entry_for(length)
                    yield PerplexityTask("finetuned", "ours", f"for up to {up_to}", scaling, length, documents)
        if long is not None and "longrope" in self.methods:
            # The same documents as at the longer lengths, for their ratio.
            yield PerplexityTask(self.extended, "ours", f"for up to {target}", self.trained, target, long)

    def _from_files(self) -> list[tuple[str, RopeScaling]]:
        """(name, factors) of evaluate.factors."""
        read = partial(
            RopeScaling.from_file,
            rotary_dim=self.shape.rotary_dim,
            original_length=self.shape.original_length,
            target_length=self.first.target_length,
            key="evaluate.factors",
        )
        scalings = {Path(path).stem: read(path) for path in self.config.factors}
        if len(scalings) < len(self.config.factors) or scalings.keys() & {*compared(), "ours", "gradient"}:
            raise ValueError(
                "evaluate.factors must be files of different names, none of them a method's, found "
                f"{self.config.factors}"
            )
        return list(scalings.items())

    def _on_base(self, method: str, *, length: int, target: int) -> list[Variant]:
        if self.start_scaling is None:
            return variants(method, self.shape, length=length, target=target)
        name = "the checkpoint's factors"
        return variants_on(method, self.shape, self.start_scaling, length=length, target=target, name=name)

    def factor_rows(self) -> list[dict[str, Any]]:
        """Rescale factors by pair: ours by input length, and the published methods' for the first target."""
        profiles = {f"ours, up to {up_to:,}": scaling for up_to, scaling in self.switch}
        for method in trainable():
            target = self.first.target_length
            profiles[method] = variants(method, self.shape, length=target, target=target)[0].scaling
        return [
            {"factors_of": name, "pair": pair, "lambda": factor}
            for name, scaling in profiles.items()
            for pair, factor in enumerate(scaling.factors)
        ]

    def _recall_readers(self, length: int) -> Iterator[tuple[str, str, LengthSwitch]]:
        """(model, method, scaling by length): the extended model, and up to the first target the base model.

        The base model also under YaRN for the length, which is what most software offers without training.
        """
        target = self.first.target_length
        if "longrope" in self.methods:
            yield self.extended, "ours", self.switch
        if length <= target and "none" in self.methods:
            yield "base", "none", LengthSwitch(((target, self.plain),))
        if self.window < length <= target:
            if "longrope" in self.methods and self.is_trained:
                yield "base", "ours", self.on_base
            if "yarn" in self.methods:
                yarn, *_ = self._on_base("yarn", length=length, target=length)
                yield "base", "yarn", LengthSwitch(((length, yarn.scaling),))

    def recall(
        self,
        draws: Iterable[Draw],
        models: Mapping[str, Any],
        prompts: PromptSets,
        *,
        desc: str,
        cache: Cache = NO_CACHE,
    ) -> list[dict[str, Any]]:
        """Rows of passkeys or needles: the extended model at every length, the base model up to the first target.

        Args:
            desc: what the draws are of, for the progress bar.
        """
        jobs = [(draw, *reader) for draw in draws for reader in self._recall_readers(draw.length)]
        tokenizer = tokenizer_hash(prompts.tokenizer)

        def rows(number: int) -> list[dict[str, Any]]:
            draw, model, method, switch = jobs[number]
            prompt_set, scaling = prompts.of(draw), scaling_key(switch.for_length(draw.length))
            score, protocol, chunk = recall_rows, NEEDLES, self.config.chunk_tokens
            if draw.family in PASSKEY_FORMS:
                score, protocol = passkey_accuracy, passkey_protocol(draw.length, chunk=chunk)
            about = {"task": protocol, "tokenizer": tokenizer, "scaling": scaling, "prompts": prompt_set.hash}
            arguments = (prompts.tokenizer, switch, prompt_set)
            measure = partial(_of_model, models, model, score, *arguments, chunk=chunk)
            unlabelled = cache.get_or_measure(model, about, measure)
            return [{"model": model, "method": method, **row} for row in unlabelled]

        return list(chain.from_iterable(_model_after_model(jobs, rows, cache=cache, desc=desc)))

    def benchmarks(self, models: Mapping[str, Any], tokenizer: Any, *, cache: Cache) -> list[dict[str, Any]]:
        """Rows of every general benchmark: original window against extended, factors by length and without recovery."""
        config, target = self.config.benchmarks, self.first.target_length
        ways: list[tuple[str, str, str, LengthSwitch, int]] = []
        if "none" in self.methods:
            ways.append(("base", "none", "original", LengthSwitch(((self.window, self.plain),)), self.window))
        if "longrope" in self.methods:
            by_length = "recovered" if self.is_trained else "by length"
            ways.append((self.extended, "ours", "extended", LengthSwitch(((target, self.trained),)), target))
            ways.append((self.extended, "ours", by_length, self.switch, target))
        jobs = [(task, *way) for task in config.tasks for way in ways]

        def row(number: int) -> dict[str, Any]:
            task, model, method, factors, switch, length = jobs[number]
            questions = Questions(task, config.path, config.limit, config.shots.get(task))
            about = {
                "task": f"{task} {questions.examples} shots",
                "tokenizer": tokenizer_hash(tokenizer),
                "scaling": scaling_key(switch),
                "length": length,
                "limit": config.limit,
                "questions": questions.source,
            }
            arguments = (tokenizer, switch, questions)
            options = {"max_length": length, "batch_tokens": config.batch_tokens}
            measure = partial(_of_model, models, model, benchmark_row, *arguments, **options)
            with within_memory(f"lower evaluate.benchmarks.batch_tokens, found {config.batch_tokens}"):
                scores = cache.get_or_measure(model, about, measure)
            return {"model": model, "method": method, "factors": factors, **scores}

        return _model_after_model(jobs, row, cache=cache, desc="benchmarks")


def _model_after_model(
    jobs: Sequence[tuple[Any, ...]], measure: Callable[[int], Result], *, cache: Cache, desc: str
) -> list[Result]:
    """Results of ``measure`` for the number of each job; a job's second entry is its model, and each is loaded once."""
    order = sorted(range(len(jobs)), key=lambda number: jobs[number][1])
    results = dict(zip(order, cache.shared_out(order, measure, desc=desc, unit="task"), strict=True))
    return [results[number] for number in range(len(jobs))]


def _of_model(models: Mapping[str, Any], name: str, measure: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call ``measure`` with the model ``name``, which is loaded only now."""
    return measure(models[name], *args, **options)


def with_gradient(
    extension: Extension, sets: DocumentSets, path: Path, models: Mapping[str, Any]
) -> Iterator[PerplexityTask]:
    """The extension's tasks for ``models``, and the gradient's result, to show what evolution gained over it."""
    yield from (task for task in extension.perplexity_tasks(sets) if task.model in models)
    if "longrope" in extension.methods and path.is_file():
        scaling = SearchedFactors.read(path).scaling
        yield PerplexityTask("base", "gradient", "gradient alone", scaling, scaling.target_length, sets[0])
