"""Every method on the same terms: perplexity of models under many scalings, on the same documents at each length."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from ropewalk.evaluate.cache import NO_CACHE, Cache, scaling_key, tensor_hash
from ropewalk.evaluate.perplexity import (
    PROTOCOL,
    TOKENS_AT_ONCE,
    DocumentSet,
    Losses,
    counted_tokens,
    document_losses,
    position_edges,
    sliding_losses,
    sliding_protocol,
)
from ropewalk.evaluate.uncertainty import mean_interval, paired
from ropewalk.rope import RopeScaling


@dataclass(frozen=True)
class PerplexityTask:
    """One figure to measure: the perplexity of a model under a scaling, at one length of one set of documents."""

    model: str
    method: str
    variant: str
    scaling: RopeScaling
    length: int
    documents: DocumentSet


@dataclass(frozen=True)
class PerplexityResult:
    """A task and the losses that were measured for it."""

    task: PerplexityTask
    losses: Losses
    stride: int | None = None
    """Tokens that the window slides by; None where the documents are read in one pass."""

    @property
    def protocol(self) -> str:
        return PROTOCOL if self.stride is None else sliding_protocol(self.task.length, self.stride)

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that identify the figure."""
        task = self.task
        return {"model": task.model, "method": task.method, "variant": task.variant, "length": task.length}

    @property
    def row(self) -> dict[str, Any]:
        """Row of the perplexity table; low and high are the bootstrap interval over documents (`uncertainty`)."""
        documents, tokens = self.task.documents, self.task.length - 1
        if self.stride is not None:
            tokens = counted_tokens(documents.rows.shape[1], self.task.length, self.stride)
        low, high = mean_interval(self.losses.means) or (None, None)
        return {
            **self.labels,
            "perplexity": self.losses.perplexity,
            "low": _exp(low),
            "high": _exp(high),
            "key_perplexity": "" if self.losses.key_perplexity is None else self.losses.key_perplexity,
            "key_tokens": self.losses.key_tokens,
            "nan_documents": self.losses.nan_documents,
            "documents": documents.documents,
            "tokens": documents.documents * tokens,
            "document_set": documents.name,
            **({} if self.stride is None else {"stride": self.stride}),
            "protocol": self.protocol,
        }


def _exp(nats: float | None) -> float | str:
    """The value of a table cell, which is empty for None."""
    return "" if nats is None else math.exp(nats)


def measure(
    models: Mapping[str, Any], tasks: Iterable[PerplexityTask], *, cache: Cache = NO_CACHE, chunk: int = TOKENS_AT_ONCE
) -> list[PerplexityResult]:
    """Read each task's documents in one pass; tasks that share model, scaling and documents share the pass.

    Documents longer than ``chunk`` tokens are measured, and written to the cache, one by one.
    """
    passes: dict[tuple[Any, ...], list[PerplexityTask]] = defaultdict(list)
    for task in tasks:
        passes[task.model, task.documents.name, *task.scaling.effect].append(task)
    longest = {key: max(task.length for task in same) for key, same in passes.items()}
    parts: list[tuple[tuple[Any, ...], DocumentSet]] = []
    # Model after model, so that each is loaded once.
    for key in sorted(passes, key=lambda key: key[0]):
        documents = passes[key][0].documents
        parts += [(key, part) for part in ([documents] if longest[key] <= chunk else documents.split(1))]

    def read(job: tuple[tuple[Any, ...], DocumentSet]) -> dict[int, Losses]:
        key, part = job
        lengths = sorted({task.length for task in passes[key]})
        return _pass(models, replace(passes[key][0], documents=part), lengths, cache=cache, chunk=chunk)

    tokens = [longest[key] * part.documents for key, part in parts]
    losses_of_parts = cache.shared_out(parts, read, desc="perplexity", unit="token", sizes=tokens)
    losses: dict[tuple[Any, ...], Losses] = defaultdict(lambda: Losses(()))
    for (key, _), losses_by_length in zip(parts, losses_of_parts, strict=True):
        for length, part_losses in losses_by_length.items():
            losses[key, length] = losses[key, length].joined(part_losses)
    return [PerplexityResult(task, losses[key, task.length]) for key, same in passes.items() for task in same]


def _pass(
    models: Mapping[str, Any], task: PerplexityTask, lengths: Sequence[int], *, cache: Cache, chunk: int
) -> dict[int, Losses]:
    documents = task.documents

    def about(length: int) -> dict[str, Any]:
        rows = tensor_hash(documents.rows[:, :length])
        return {"task": PROTOCOL, "scaling": scaling_key(task.scaling), "documents": rows, "length": length}

    def key_token_hash(length: int) -> str | None:
        return None if documents.key_tokens is None else tensor_hash(documents.key_tokens[:, : length - 1])

    by_length: dict[int, Losses] = {}
    for length in lengths:
        figure = cache.get(task.model, about(length))
        # A figure that was measured with other key tokens, or without any, is usable only where none are asked for.
        if figure is not None and key_token_hash(length) in (None, figure.get("key_tokens")):
            by_length[length] = Losses.from_json(figure)
    if missing := [length for length in lengths if length not in by_length]:
        measured_losses = document_losses(models[task.model], task.scaling, documents, missing, chunk=chunk)
        for length, losses in measured_losses.items():
            cache.put(task.model, about(length), {**asdict(losses), "key_tokens": key_token_hash(length)})
        by_length |= measured_losses
    return by_length


def perplexity_tables(
    models: Mapping[str, Any],
    tasks: Sequence[PerplexityTask],
    *,
    stride: int | None,
    cache: Cache = NO_CACHE,
    chunk: int = TOKENS_AT_ONCE,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables perplexity, positions, paired and, with a stride, sliding."""
    results = measure(models, tasks, cache=cache, chunk=chunk)
    sliding = measure_sliding(models, tasks, stride=stride, cache=cache, chunk=chunk)
    return {
        "perplexity": [result.row for result in results],
        "positions": list(position_rows(results)),
        "paired": list(paired_rows(results)),
        "sliding": [result.row for result in sliding],
    }


def measure_sliding(
    models: Mapping[str, Any],
    tasks: Iterable[PerplexityTask],
    *,
    stride: int | None,
    cache: Cache = NO_CACHE,
    chunk: int = TOKENS_AT_ONCE,
) -> list[PerplexityResult]:
    """Slide windows of each task's length over the whole rows of its documents; nothing without a stride."""
    if stride is None:
        return []

    def result(task: PerplexityTask) -> PerplexityResult:
        scaling, documents = task.scaling, task.documents
        about = {
            "task": sliding_protocol(task.length, stride),
            "scaling": scaling_key(scaling),
            "documents": tensor_hash(documents.rows),
        }

        def measured() -> dict[str, Any]:
            model = models[task.model]
            return asdict(sliding_losses(model, scaling, documents, task.length, stride=stride, chunk=chunk))

        figure = cache.get_or_measure(task.model, about, measured)
        return PerplexityResult(task, Losses.from_json(figure), stride)

    return cache.shared_out(list(tasks), result, desc="perplexity, sliding", unit="figure")


def position_rows(results: Sequence[PerplexityResult]) -> Iterator[dict[str, Any]]:
    """Loss by position, as means over documents: each model, scaling and set of documents at its longest length."""
    longest: dict[tuple[Any, ...], PerplexityResult] = {}
    for result in results:
        task = result.task
        key = (task.model, task.method, task.variant, task.documents.name, task.scaling)
        longest[key] = max(longest.get(key, result), result, key=lambda other: other.task.length)
    for result in longest.values():
        task = result.task
        edges = pairwise(position_edges(task.length))
        for (low, high), losses in zip(edges, zip(*result.losses.bins, strict=True), strict=True):
            yield {
                "model": task.model,
                "method": task.method,
                "variant": task.variant,
                "document_set": task.documents.name,
                "length": task.length,
                "from_position": low + 1,
                "to_position": high,
                "loss_nats": sum(losses) / len(losses),
                "protocol": result.protocol,
            }


def paired_rows(results: Sequence[PerplexityResult]) -> Iterator[dict[str, Any]]:
    """Ours against every other method's best variant on the same documents, at each length."""
    groups: dict[tuple[str, int, str], dict[str, PerplexityResult]] = defaultdict(dict)
    for result in results:
        task, best = result.task, groups[result.task.model, result.task.length, result.task.documents.name]
        best[task.method] = min(best.get(task.method, result), result, key=lambda other: other.losses.perplexity)
    for (model, length, documents), best in groups.items():
        if (ours := best.pop("ours", None)) is None:
            continue
        for method, other in best.items():
            comparison = paired(ours.losses.means, other.losses.means)
            nats = (comparison.difference, comparison.low, comparison.high) if comparison else (None, None, None)
            ratio, low, high = map(_exp, nats)
            yield {
                "model": model,
                "length": length,
                "document_set": documents,
                "method": "ours",
                "against": method,
                "against_variant": other.task.variant,
                "perplexity_ratio": ratio,
                "low": low,
                "high": high,
                "p_value": "" if comparison is None else comparison.p_value,
                "documents": len(ours.losses.means),
                "protocol": ours.protocol,
            }
