"""Every method on the same terms: perplexity of one model under many scalings, each length's best case kept apart."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from ropewalk.evaluate.cache import NO_CACHE, Cache, scaling_key, tensor_hash
from ropewalk.evaluate.perplexity import (
    PROTOCOL,
    DocumentSet,
    Losses,
    counted_tokens,
    document_losses,
    position_edges,
    sliding_losses,
    sliding_protocol,
)
from ropewalk.evaluate.uncertainty import mean_interval, paired
from ropewalk.progress import Progress
from ropewalk.rope import RopeScaling

CHUNK_TOKENS = 16_384


@dataclass(frozen=True)
class Reading:
    """One figure to measure: a model under a scaling at one length of one document set."""

    model: str
    method: str
    variant: str
    scaling: RopeScaling
    length: int
    documents: DocumentSet


@dataclass(frozen=True)
class Measured:
    """A reading and what came out."""

    reading: Reading
    losses: Losses
    stride: int | None = None
    """Of sliding windows; None for one pass."""

    @property
    def protocol(self) -> str:
        return PROTOCOL if self.stride is None else sliding_protocol(self.reading.length, self.stride)

    @property
    def row(self) -> dict[str, Any]:
        """For the perplexity table; low and high are the bootstrap interval over documents (`uncertainty`)."""
        reading, documents = self.reading, self.reading.documents
        tokens = reading.length - 1
        if self.stride is not None:
            tokens = counted_tokens(documents.rows.shape[1], reading.length, self.stride)
        low, high = mean_interval(self.losses.means) or (math.nan, math.nan)
        return {
            "model": reading.model,
            "method": reading.method,
            "variant": reading.variant,
            "length": reading.length,
            "perplexity": self.losses.perplexity,
            "low": "" if math.isnan(low) else math.exp(low),
            "high": "" if math.isnan(high) else math.exp(high),
            "nan_documents": self.losses.nan_documents,
            "documents": documents.documents,
            "tokens": documents.documents * tokens,
            "document_set": documents.name,
            **({} if self.stride is None else {"stride": self.stride}),
            "protocol": self.protocol,
        }


def measured(
    models: dict[str, Any], readings: Iterable[Reading], *, cache: Cache = NO_CACHE, chunk: int = CHUNK_TOKENS
) -> list[Measured]:
    """One pass over the first tokens; readings that share model, scaling and documents share the pass.

    Documents longer than ``chunk`` are measured and kept one by one.
    """
    jobs: dict[tuple[Any, ...], list[Reading]] = defaultdict(list)
    for reading in readings:
        scaling = reading.scaling
        jobs[reading.model, reading.documents.name, scaling.factors, scaling.n_hat, scaling.attention_factor].append(
            reading
        )
    found = []
    total = sum(max(r.length for r in job) * job[0].documents.documents for job in jobs.values())
    with Progress(total=total, desc="perplexity", unit="token", unit_scale=True) as bar:
        for job in jobs.values():
            first, lengths = job[0], sorted({reading.length for reading in job})
            losses = {length: Losses(()) for length in lengths}
            for part in _parts(first.documents, lengths[-1], chunk):
                one = _pass(models, replace(first, documents=part), lengths, cache=cache, chunk=chunk)
                losses = {length: losses[length].joined(one[length]) for length in lengths}
                bar.update(lengths[-1] * part.documents)
            found += [Measured(reading, losses[reading.length]) for reading in job]
    return found


def _parts(documents: DocumentSet, longest: int, chunk: int) -> list[DocumentSet]:
    """The documents that are measured before anything is kept: all, or one where one takes long."""
    if longest <= chunk:
        return [documents]
    return [replace(documents, rows=row[None]) for row in documents.rows]


def _pass(
    models: dict[str, Any], reading: Reading, lengths: Sequence[int], *, cache: Cache, chunk: int
) -> dict[int, Losses]:
    def about(length: int) -> dict[str, Any]:
        rows = tensor_hash(reading.documents.rows[:, :length])
        return {"task": PROTOCOL, "scaling": scaling_key(reading.scaling), "documents": rows, "length": length}

    kept = {} if cache.folder is None else {length: cache.get(reading.model, about(length)) for length in lengths}
    found = {length: Losses.from_json(figure) for length, figure in kept.items() if figure is not None}
    if missing := [length for length in lengths if length not in found]:
        model = models[reading.model]
        for length, losses in document_losses(model, reading.scaling, reading.documents, missing, chunk=chunk).items():
            found[length] = losses
            if cache.folder is not None:
                cache.put(reading.model, about(length), asdict(losses))
    return found


def measured_sliding(
    models: dict[str, Any],
    readings: Iterable[Reading],
    *,
    stride: int | None,
    cache: Cache = NO_CACHE,
    chunk: int = CHUNK_TOKENS,
) -> list[Measured]:
    """Windows of each reading's length that slide over the whole rows of its documents; none without a stride."""
    found: list[Measured] = []
    if stride is None:
        return found
    with Progress(list(readings), desc="perplexity, sliding", unit="figure") as bar:
        for reading in bar:
            about = {
                "task": sliding_protocol(reading.length, stride),
                "scaling": scaling_key(reading.scaling),
                "documents": tensor_hash(reading.documents.rows),
            }

            def measure(reading: Reading = reading) -> dict[str, Any]:
                model, documents = models[reading.model], reading.documents
                return asdict(
                    sliding_losses(model, reading.scaling, documents, reading.length, stride=stride, chunk=chunk)
                )

            found.append(Measured(reading, Losses.from_json(cache.kept(reading.model, about, measure)), stride))
    return found


def measure(
    models: dict[str, Any], readings: Iterable[Reading], *, cache: Cache = NO_CACHE, chunk: int = CHUNK_TOKENS
) -> list[dict[str, Any]]:
    """A row per reading, with its protocol; see `measured`."""
    return [one.row for one in measured(models, readings, cache=cache, chunk=chunk)]


def position_rows(found: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """Loss by position, as means over documents: each model, scaling and set of documents at its longest length."""
    longest: dict[tuple[Any, ...], Measured] = {}
    for one in found:
        reading = one.reading
        key = (reading.model, reading.method, reading.variant, reading.documents.name, reading.scaling)
        if key not in longest or longest[key].reading.length < reading.length:
            longest[key] = one
    for one in longest.values():
        reading = one.reading
        for (low, high), losses in zip(
            pairwise(position_edges(reading.length)), zip(*one.losses.bins, strict=True), strict=True
        ):
            yield {
                "model": reading.model,
                "method": reading.method,
                "variant": reading.variant,
                "document_set": reading.documents.name,
                "length": reading.length,
                "from_position": low + 1,
                "to_position": high,
                "loss_nats": sum(losses) / len(losses),
                "protocol": one.protocol,
            }


def paired_rows(found: Sequence[Measured], *, reference: str = "ours") -> Iterator[dict[str, Any]]:
    """``reference`` against every other method's best variant on the same documents, at each length."""
    groups: dict[tuple[str, int, str], dict[str, Measured]] = defaultdict(dict)
    for one in found:
        best = groups[one.reading.model, one.reading.length, one.reading.documents.name]
        held = best.get(one.reading.method)
        if held is None or one.losses.perplexity < held.losses.perplexity:
            best[one.reading.method] = one
    for (model, length, documents), best in groups.items():
        for method, other in best.items():
            own = best.get(reference)
            if own is None or method == reference:
                continue
            result = paired(own.losses.means, other.losses.means)
            yield {
                "model": model,
                "length": length,
                "document_set": documents,
                "method": reference,
                "against": method,
                "against_variant": other.reading.variant,
                "perplexity_ratio": "" if result is None else math.exp(result.difference),
                "low": "" if result is None or result.low is None else math.exp(result.low),
                "high": "" if result is None or result.high is None else math.exp(result.high),
                "p_value": "" if result is None else result.p_value,
                "documents": len(own.losses.means),
                "protocol": own.protocol,
            }


def best_case(
    rows: Sequence[dict[str, Any]], *, model: str, method: str, length: int, document_set: str | None = None
) -> float:
    """The lowest perplexity of a method's variants at a length; raises KeyError when none was measured."""
    found = [
        row["perplexity"]
        for row in rows
        if (row["model"], row["method"], row["length"]) == (model, method, length)
        and document_set in (None, row["document_set"])
    ]
    if not found:
        raise KeyError(f"no perplexity of {method} on {model} at {length}")
    return float(min(found))
