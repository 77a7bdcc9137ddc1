"""The work of every stage that runs a model, as the configuration asks for it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ropewalk.config import Config, FinetuneStepConfig, SearchTargetConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.costs.work import Work
from ropewalk.evaluate.compare import PerplexityTask
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.perplexity import DocumentSet, DocumentSets, windows
from ropewalk.evaluate.prompt_sets import needle_draws, passkey_draws, retrieval_draws
from ropewalk.evaluate.prompts import PASSKEY_FORMS
from ropewalk.export.cost import AS_MEASURED, cost_tasks
from ropewalk.finetune.memory import training_work
from ropewalk.finetune.schedule import control_step
from ropewalk.models.checks import TOKENS as CHECKED_TOKENS
from ropewalk.models.published import PublishedScaling
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape
from ropewalk.ways import is_left_out

_WARM_STARTS = {"search_first": 6, "search_second": 12, "recover": 2}
"""Number of warm starts and published methods that are evaluated before the gradient steps."""
_KNOWN = 6
"""Number of trials that are warm starts or the gradient's result, which are not evaluated again."""


@dataclass(frozen=True)
class Machine:
    """The properties of the planned devices that the work depends on."""

    gpu: bool
    mixed: bool
    """Whether the precision of fine-tuning is bf16 over float32 weights."""
    kept_models: int
    """How many models evaluate keeps in memory, at most (`ropewalk.evaluate.models.kept_models`)."""


def extension_works(config: Config, published: PublishedScaling, machine: Machine) -> list[Work]:
    """Work in the order of the stages of `ExtensionConfig.way`; searches are counted as if none ended early.

    Args:
        published: the base model's scaling; its ``start`` is what the extension starts from.
    """
    extension = planned_extension(config, published)
    stages: dict[str, list[Work]] = {
        "search_first": [*_search(config, "search_first", machine)],
        "finetune_first": [*_finetune(config, "first", machine)],
        "finetune_second": [*_finetune(config, "second", machine), *_control(config, extension.window, machine)],
        "finetune_baselines": [*_baselines(config, machine)],
        "search_second": [*_search(config, "search_second", machine)],
        "recover": [*_search(config, "recover", machine)],
        "evaluate": [*_evaluate(config, extension, machine)],
        "export": [*_export(config, extension)],
    }
    way = config.extension.way
    return [
        work
        for stage, stage_works in stages.items()
        for work in stage_works
        if work.rows and not is_left_out(stage, way)
    ]


def models_held(config: Config) -> tuple[str, ...]:
    """Names of the models that evaluate reads, as in `ropewalk.evaluate.models.model_paths`."""
    if not _is_trained(config):
        return ("base",)
    control = ("control",) if config.finetune.control else ()
    return ("base", "finetuned", *control, *(f"baseline_{method}" for method in config.baselines.methods))


def _is_trained(config: Config) -> bool:
    return not is_left_out("finetune_second", config.extension.way)


def _search(config: Config, stage: str, machine: Machine) -> Iterator[Work]:
    search = config.search
    target: SearchTargetConfig = getattr(config.extension, stage)
    documents = target.documents or search.documents
    # Workers beyond the number of devices share them; on a processor all of them share its memory.
    devices = min(search.workers, config.parallel.devices) if machine.gpu else 1
    dtype, processes = config.model.dtype, -(-search.workers // devices)
    for place, length in enumerate(target.lengths):
        trials = search.trials if target.trials is None else target.trials[place]
        steps = search.gradient_steps if target.gradient_steps is None else target.gradient_steps[place]
        # A later length also starts from the results of the one before, and the gradient's result is evaluated too.
        warm_starts = _WARM_STARTS[stage] + (2 if place and stage != "recover" else 0) + 1
        candidates = warm_starts + max(0, trials - _KNOWN) if steps or not trials else trials
        # A race reads every document on its own, at shorter lengths first.
        looks = (*search.race.shorter, 1.0) if search.race.blocks else (1.0,)
        at_once = 1 if search.race.blocks else min(documents, max(1, search.batch_tokens // length))
        for share in (share * look for share in search.fitness.lengths for look in looks):
            part_length = max(2, round(share * length))
            yield Work(
                stage, f"{candidates:,} candidates, {part_length:,} tokens", "read", part_length,
                candidates * documents, at_once, at_once, devices=devices, processes=processes, dtype=dtype,
                chunk=search.batch_tokens,
            )  # fmt: skip
        every = search.double_length_every if stage == "search_first" else None
        doubled = steps // every if every else 0
        for tokens, count in ((length, steps - doubled), (2 * length, doubled)):
            if count or tokens == length:
                yield Work(
                    stage, f"{count:,} gradient steps, {tokens:,} tokens", "learn", tokens,
                    count * search.gradient_batch_size, search.gradient_batch_size, search.gradient_batch_size,
                    processes=processes, recompute=search.activation_checkpointing != "none",
                    offload=search.activation_checkpointing == "offload", dtype=dtype,
                )  # fmt: skip


def _finetune(config: Config, part: str, machine: Machine, *, what: str = "training") -> Iterator[Work]:
    """The steps of the schedule's part ``first`` or ``second``."""
    for step in config.finetune.steps_of(part).values():
        yield _step(config, step, machine, stage=f"finetune_{part}", what=what)


def _control(config: Config, window: int, machine: Machine) -> Iterator[Work]:
    if config.finetune.control:
        # As `ropewalk.finetune.schedule.train_control` trains it.
        finetune = replace(config.finetune, micro_batch_size=None, short_share=0.0)
        step = control_step(finetune, window=window)
        yield _step(replace(config, finetune=finetune), step, machine, stage="finetune_second", what="control")


def _baselines(config: Config, machine: Machine) -> Iterator[Work]:
    for method in config.baselines.methods:
        for part in ("first", "second"):
            for work in _finetune(config, part, machine, what=method):
                yield replace(work, stage="finetune_baselines")


def _step(config: Config, step: FinetuneStepConfig, machine: Machine, *, stage: str, what: str) -> Work:
    """All rows of a step of the schedule."""
    dtype = config.finetune.weights_dtype(config.model.dtype)
    work = training_work(step, config.finetune, config.parallel, mixed=machine.mixed, dtype=dtype, gpu=machine.gpu)
    return replace(work, stage=stage, what=f"{what}, {step.length:,} tokens", rows=step.batch_size * step.steps)


@dataclass(frozen=True)
class _PlannedExtension(Extension):
    """An extension whose documents are only counted."""

    counts: tuple[int, int] = (0, 0)
    """Numbers of documents as in `document_counts`."""

    def document_sets(self, store: TokenStore | None) -> DocumentSets:
        longest, target = max(self.config.lengths), self.first.target_length
        short, long = (
            DocumentSet(name, torch.empty((count, length), device="meta"))
            for name, count, length in (("all", self.counts[0], target), ("long", self.counts[1], longest))
        )
        return short, long if longest > target else None

    def planned_tasks(self, held: tuple[str, ...]) -> Iterator[PerplexityTask]:
        """The tasks of the models ``held``, and that of the gradient's result."""
        sets = self.document_sets(None)
        yield from (task for task in self.perplexity_tasks(sets) if task.model in held)
        if "longrope" in self.methods:
            gradient = replace(self.first, attention_factor=1.5)
            yield PerplexityTask("base", "gradient", "gradient alone", gradient, gradient.target_length, sets[0])

    def readers(self, length: int) -> int:
        """Number of models and scalings that prompts of ``length`` tokens are read under."""
        return len({(model, switch.for_length(length)) for model, _, switch in self._recall_readers(length)})


def planned_extension(config: Config, published: PublishedScaling) -> _PlannedExtension:
    """The extension that the searches will lead to, with placeholders for the factors."""
    extension, shape, start = config.extension, published.shape, published.start
    is_trained = _is_trained(config)
    window = start.lengths[-1] if start else shape.original_length
    short = extension.recover.lengths if is_trained else [window]
    long = extension.search_second.lengths if extension.way == "long" else []
    scalings = {
        length: RopeScaling(_powers(shape, length), shape.original_length, max(length, shape.original_length), n_hat=1)
        for length in (*short, extension.target, *long)
    }
    switch = LengthSwitch(tuple(sorted(scalings.items())))
    return _PlannedExtension(
        shape,
        scalings[extension.target],
        switch if is_trained else switch.with_doublings,
        config.evaluate,
        tuple(config.rope.methods),
        start.longest if start else None,
        "finetuned" if is_trained else "base",
        counts=document_counts(config),
    )


def _evaluate(config: Config, extension: _PlannedExtension, machine: Machine) -> Iterator[Work]:
    """Evaluations for the report; those that share model and scaling share a pass, as in the stage evaluate."""
    evaluate, target, held = config.evaluate, config.extension.target, models_held(config)
    models = min(len(held), machine.kept_models)
    # Processes on a processor share its memory.
    count = config.parallel.devices
    devices, processes = (count, 1) if machine.gpu else (1, count)
    tasks = [*extension.planned_tasks(held)]
    by_length = _passes(tasks)
    if evaluate.stride is not None:
        for task in tasks:
            spans = windows(task.documents.rows.shape[1], task.length, evaluate.stride)
            by_length[task.length] += task.documents.documents * len(spans)
    for length, rows in _far_context(extension).items():
        by_length[length] += rows
    for work in _reads("evaluate", by_length, config):
        yield replace(work, models=models, devices=devices, processes=processes)
    prompts: dict[bool, dict[int, int]] = {True: defaultdict(int), False: defaultdict(int)}
    for draw in (*passkey_draws(evaluate, target=target, seed=0), *needle_draws(evaluate, seed=0)):
        # Keys in longer prompts are not decoded.
        decodes = draw.family not in PASSKEY_FORMS or draw.length <= evaluate.chunk_tokens
        prompts[decodes][draw.length] += draw.trials * extension.readers(draw.length)
    for draw in retrieval_draws(evaluate, seed=0):
        prompts[True][draw.length] += draw.trials
        prompts[True][extension.shape.original_length] += draw.trials
    for decodes, by_length in prompts.items():
        for work in _reads("evaluate", by_length, config, what="prompts"):
            yield replace(work, models=models, generates=decodes, devices=devices, processes=processes)


def _far_context(extension: _PlannedExtension) -> dict[int, int]:
    """Numbers of rows by length that `far_context` reads: each set of documents for key tokens, then each length."""
    window, target = extension.window, extension.first.target_length
    by_length: dict[int, int] = defaultdict(int)
    short, long = extension.document_sets(None)
    beyond = [length for length in extension.config.lengths if length > window]
    for documents, lengths in ((short, [n for n in beyond if n <= target]), (long, [n for n in beyond if n > target])):
        if documents is not None:
            for length in (documents.rows.shape[1], *lengths):
                by_length[length] += documents.documents
                by_length[window] += documents.documents * len(windows(length, window, max(window // 2, 1)))
    return by_length


def _export(config: Config, extension: _PlannedExtension) -> Iterator[Work]:
    """Measuring what other software loses, as far as evaluate has not, and checking the exported model."""
    sets, lengths, target = extension.document_sets(None), config.evaluate.lengths, config.extension.target
    tasks = cost_tasks(extension.extended, extension.switch, lengths, sets, target=target)
    yield from _reads("export", _passes([task for task in tasks if task.variant != AS_MEASURED]), config)
    yield Work(
        "export", "comparison with the exported model", "read", CHECKED_TOKENS, 8, 1, 1, models=2,
        dtype=config.model.dtype,
    )  # fmt: skip


def _passes(tasks: list[PerplexityTask]) -> dict[int, int]:
    """Numbers of rows by length; tasks that share model, scaling and documents share the pass over the longest."""
    passes: dict[tuple[object, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for task in tasks:
        scaling = task.scaling
        key = (task.model, task.documents.name, *scaling.effect)
        passes[key] = max(passes[key], (task.length, task.documents.documents))
    by_length: dict[int, int] = defaultdict(int)
    for length, documents in passes.values():
        by_length[length] += documents
    return by_length


def _reads(stage: str, by_length: dict[int, int], config: Config, *, what: str = "rows") -> Iterator[Work]:
    chunk = config.evaluate.chunk_tokens
    for length, rows in sorted(by_length.items()):
        at_once = min(rows, max(1, chunk // length))
        yield Work(
            stage, f"{rows:,} {what} of {length:,} tokens", "read", length, rows, at_once, at_once, chunk=chunk,
            dtype=config.model.dtype,
        )  # fmt: skip


def _powers(shape: RotaryShape, target: int) -> tuple[float, ...]:
    """Factors that differ from those of all published methods, so that no two passes are taken for one."""
    pairs, ratio = shape.rotary_dim // 2, target / shape.original_length
    return tuple(ratio ** ((pair + 0.5) / pairs) for pair in range(pairs))


def document_counts(config: Config) -> tuple[int, int]:
    """Numbers of test documents for the first target and beyond: those prepared, or else as many as asked for."""
    evaluate, least = config.evaluate, config.corpus.min_long_documents
    tokens = Path(config.inputs) / "tokens" / "test"
    if tokens.is_dir():
        store = TokenStore(tokens)
        short, long = (
            len(store.long_documents(length - 1)) for length in (config.extension.target, max(evaluate.lengths))
        )
    else:
        short, long = evaluate.documents or least, evaluate.long_documents or least
    return min(short, evaluate.documents or short), min(long, evaluate.long_documents or long)
