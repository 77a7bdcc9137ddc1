"""The work of every stage that needs a model, as the configuration asks for it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ropewalk.config import Config, FinetuneStepConfig, SearchTargetConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.costs.work import Work
from ropewalk.evaluate.perplexity import DocumentSet
from ropewalk.evaluate.road import Road
from ropewalk.finetune.memory import training_work
from ropewalk.finetune.train import control_step
from ropewalk.rope import RopeScaling, RotaryShape


def road_works(config: Config, shape: RotaryShape, *, mixed: bool) -> list[Work]:
    """Work in the order of the stages; searches that may end early are counted as if none did.

    Args:
        mixed: whether the precision of fine-tuning is bf16 over float32 weights.
    """
    works = [*_search(config, "search_first", shape.original_length), *_finetune(config, shape, mixed=mixed)]
    works += [*_search(config, "search_second", config.road.first_target), *_search(config, "recover", None)]
    works += _evaluate(config, shape)
    return [replace(work, dtype=config.model.dtype) for work in works if work.rows]


_BEGINNINGS = {"search_first": 4, "search_second": 8, "recover": 2}
"""Starts and published methods that are read before a gradient."""
_KNOWN = 4
"""Of them and with the gradient's end, how many the trials begin with, which are not read again."""


def _search(config: Config, stage: str, window: int | None) -> Iterator[Work]:
    search = config.search
    target: SearchTargetConfig = getattr(config.road, stage)
    documents = target.documents or search.documents
    total = config.parallel.devices * config.parallel.nodes
    for place, length in enumerate(target.lengths):
        trials = search.trials if target.trials is None else target.trials[place]
        steps = search.gradient_steps if target.gradient_steps is None else target.gradient_steps[place]
        # A later length begins from what the one before found as well; the gradient's end is read too.
        before = _BEGINNINGS[stage] + (2 if place and stage != "recover" else 0) + 1
        candidates = before + max(0, trials - _KNOWN) if steps else trials
        at_once = max(1, search.batch_tokens // length)
        for share in search.fitness.lengths:
            own = max(2, round(share * length))
            yield Work(
                stage, f"{candidates:,} candidates, {length:,} tokens", "read", own, candidates * documents,
                min(at_once, documents), min(at_once, documents), devices=min(search.workers, total),
            )  # fmt: skip
        yield Work(
            stage, f"{steps:,} gradient steps, {length:,} tokens", "learn", length, steps * search.gradient_rows,
            search.gradient_rows, search.gradient_rows, recompute=search.gradient_checkpointing,
        )  # fmt: skip


def finetune_steps(config: Config, *, window: int) -> list[tuple[str, str, FinetuneStepConfig]]:
    """(stage, what, step) of the progressive schedule and its control."""
    finetune = config.finetune
    steps = [
        (f"finetune_{stage}", "training", step)
        for stage in ("first", "second")
        for step in finetune.steps_of(stage).values()
    ]
    if finetune.control:
        steps.append(("finetune_second", "control", control_step(finetune, window=window)))
    return steps


def _finetune(config: Config, shape: RotaryShape, *, mixed: bool) -> Iterator[Work]:
    # Where no peak is published, the plan is for this machine's processor.
    gpu, dtype = config.plan.tflops is not None, config.model.dtype
    for stage, what, step in finetune_steps(config, window=shape.original_length):
        one_step = training_work(step, config.finetune, config.parallel, mixed=mixed, dtype=dtype, gpu=gpu)
        what = f"{what}, {step.length:,} tokens"
        yield replace(one_step, stage=stage, what=what, rows=step.rows * step.steps)


@dataclass(frozen=True)
class _PlannedRoad(Road):
    """A road whose documents are counted and not read."""

    counts: tuple[int, int] = (0, 0)
    """As `document_counts` says."""

    def document_sets(self, store: TokenStore | None) -> tuple[DocumentSet, DocumentSet | None]:
        longest, target = max(self.config.lengths), self.first.target_length
        short, long = (
            DocumentSet(name, torch.empty((count, length), device="meta"))
            for name, count, length in (("all", self.counts[0], target), ("long", self.counts[1], longest))
        )
        return short, long if longest > target else None


def _evaluate(config: Config, shape: RotaryShape) -> Iterator[Work]:
    """Readings of the report's tables; those that share model and scaling share one pass, as in evaluate."""
    first_target, second_target = config.road.first_target, config.road.second_target
    first, second = (
        RopeScaling(_powers(shape, target), shape.original_length, target) for target in (first_target, second_target)
    )
    switch = ((first_target, first), (second_target, second))
    road = _PlannedRoad(
        shape, first, switch, config.evaluate, tuple(config.rope.methods), counts=document_counts(config)
    )
    passes: dict[tuple[object, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for reading in road.readings(None):  # type: ignore[arg-type]
        scaling = reading.scaling
        key = (reading.model, reading.documents.name, scaling.factors, scaling.n_hat, scaling.attention_factor)
        passes[key] = max(passes[key], (reading.length, reading.documents.documents))
    by_length: dict[int, int] = defaultdict(int)
    for length, documents in passes.values():
        by_length[length] += documents
    evaluate = config.evaluate
    for length in evaluate.passkey_lengths:
        short = length <= first_target
        readers = 1 + short + (shape.original_length < length <= first_target)
        by_length[length] += readers * (evaluate.passkey_trials if short else evaluate.passkey_long_trials)
    for length, rows in sorted(by_length.items()):
        at_once = min(rows, max(1, evaluate.chunk_tokens // length))
        yield Work("evaluate", f"{rows:,} rows of {length:,} tokens", "read", length, rows, at_once, at_once)


def _powers(shape: RotaryShape, target: int) -> tuple[float, ...]:
    """Factors unlike any published method's, so that no pass is taken for another's."""
    pairs, ratio = shape.rotary_dim // 2, target / shape.original_length
    return tuple(ratio ** ((pair + 0.5) / pairs) for pair in range(pairs))


def document_counts(config: Config) -> tuple[int, int]:
    """Test documents up to the first target and beyond; as prepared where they are, else as many as are asked for."""
    evaluate, least = config.evaluate, config.corpus.least_long_documents
    tokens = Path(config.inputs) / "tokens" / "test"
    if tokens.is_dir():
        store = TokenStore(tokens)
        short, long = (
            len(store.long_documents(length - 1)) for length in (config.road.first_target, max(evaluate.lengths))
        )
    else:
        short, long = evaluate.documents or least, evaluate.long_documents or least
    return min(short, evaluate.documents or short), min(long, evaluate.long_documents or long)
