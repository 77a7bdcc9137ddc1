"""Every method on the same terms: perplexity of one model under many scalings, each length's best case kept apart."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluate.perplexity import PROTOCOL, DocumentSet, perplexities
from ropewalk.progress import Progress
from ropewalk.rope import RopeScaling


@dataclass(frozen=True)
class Reading:
    """One figure to measure: a model under a scaling at one length of one document set."""

    model: str
    method: str
    variant: str
    scaling: RopeScaling
    length: int
    documents: DocumentSet


def measure(models: dict[str, Any], readings: Iterable[Reading]) -> list[dict[str, Any]]:
    """A row per reading, with its protocol; readings that share model, scaling and documents share one pass."""
    jobs: dict[tuple[Any, ...], list[Reading]] = defaultdict(list)
    for reading in readings:
        scaling = reading.scaling
        jobs[reading.model, reading.documents.name, scaling.factors, scaling.n_hat, scaling.attention_factor].append(
            reading
        )
    rows = []
    total = sum(max(r.length for r in job) * job[0].documents.documents for job in jobs.values())
    with Progress(total=total, desc="perplexity", unit="token", unit_scale=True) as bar:
        for job in jobs.values():
            lengths = sorted({reading.length for reading in job})
            found = perplexities(models[job[0].model], job[0].scaling, job[0].documents, lengths)
            bar.update(lengths[-1] * job[0].documents.documents)
            rows += [
                {
                    "model": reading.model,
                    "method": reading.method,
                    "variant": reading.variant,
                    "length": reading.length,
                    "perplexity": found[reading.length],
                    "documents": reading.documents.documents,
                    "tokens": reading.documents.documents * (reading.length - 1),
                    "document_set": reading.documents.name,
                    "protocol": PROTOCOL,
                }
                for reading in job
            ]
    return rows


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
