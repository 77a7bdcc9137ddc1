"""The question of a run and the answer that its figures give, in words and in a few numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.report.plots import is_number
from ropewalk.report.style import style
from ropewalk.report.tables import number
from ropewalk.rope.methods import baselines

_LENGTHS = {
    "works_to": "tokens that it works to",
    "reads_to": "tokens that it reads",
    "retrieves_to": "tokens that it retrieves from",
}


@dataclass(frozen=True)
class Figure:
    """A number in large type, and its label."""

    value: str
    label: str


@dataclass(frozen=True)
class Answer:
    question: str
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


def answer(
    name: str,
    perplexity: ResultTable,
    verdict: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    *,
    window: int,
    target: int | None = None,
) -> Answer:
    """The verdict, and ours beside the best published method; what was not measured is left out.

    Args:
        verdict: content of verdict.json (`ropewalk.evaluate.verdict`); may be empty.
        target: the longest length that there are factors for, at which methods are compared; by default the longest
            length that was measured.
    """
    extended = "finetuned" if len(perplexity.where(model="finetuned")) else "base"
    question = (
        f"How far can {name} read beyond the {window:,} tokens of its window, and do searched rescale factors take it "
        "further than the published methods do?"
    )
    extending = perplexity.where(model=extended, method="ours")
    sentences = [str(sentence) for sentence in verdict.get("sentences", ())]
    figures = [
        Figure(f"{verdict[name]:,}", label if verdict[name] > window else f"{label}, which is the window")
        for name, label in _LENGTHS.items()
        if name in verdict
    ]
    if window < (lowest := _lowest(extending)) < max(extending.lengths(), default=0):
        sentences.append(f"Its perplexity falls up to {lowest:,} tokens and rises from there.")
    measured = extending.lengths()
    longest = target if target in measured else max(measured, default=0)
    which = "the longest length measured" if longest == max(measured, default=0) else "the target"
    sets = extending.where(length=longest).values("document_set")
    documents = "all" if "all" in sets else next(iter(sets), None)
    ours = extending.best_perplexity(length=longest, document_set=documents)
    best = perplexity.best_case(model=extended, method=baselines(), length=longest, document_set=documents)
    if is_number(ours) and best is not None and is_number(best["perplexity"]):
        published = number(best["perplexity"])
        lower = round(100 * (1 - ours / best["perplexity"]))
        how = f"{lower} % lower than" if lower > 0 else f"{-lower} % higher than" if lower else "within 1 % of"
        sentences.append(
            f"At {longest:,} tokens, {which}, its perplexity is {number(ours)}: {how} that "
            f"of the best published method on the same weights and documents, {style(best['method'])[0]} ({published})."
        )
        figures.append(Figure(number(ours), f"perplexity at {longest:,}; best published method {published}"))
    if checks:
        passed = sum(bool(check["passed"]) for check in checks)
        figures.append(Figure(f"{passed} of {len(checks)}", "checks passed"))
    return Answer(question, tuple(sentences), tuple(figures))


def _lowest(ours: ResultTable) -> int:
    """The length up to which the perplexity of ours falls from length to length on the same documents."""
    lengths = ours.lengths()
    for shorter, longer in pairwise(lengths):
        for documents in ours.where(length=longer).values("document_set"):
            before, after = (
                ours.best_perplexity(length=length, document_set=documents) for length in (shorter, longer)
            )
            if before is not None and after is not None and after > before:
                return shorter
    return max(lengths, default=0)
