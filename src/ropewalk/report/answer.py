"""The question that a run asks and what its figures answer, in words and in a few numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.report.plots import is_number
from ropewalk.report.style import style
from ropewalk.report.tables import number
from ropewalk.rope.methods import baselines

RELIABLE = 0.9
"""Share of passkeys found from which a length counts as one that the model retrieves from."""


@dataclass(frozen=True)
class Figure:
    """One number set large, and what it is."""

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
    passkey: ResultTable,
    checks: Sequence[Mapping[str, Any]],
    *,
    window: int,
    target: int | None = None,
) -> Answer:
    """What the tables of perplexity and passkey accuracy say; what was not measured is left out.

    Args:
        target: the longest length that there are factors for, at which methods are compared; by default the longest
            length that was measured.
    """
    extended = "finetuned" if len(perplexity.where(model="finetuned")) else "base"
    question = (
        f"How far can {name} read beyond the {window:,} tokens of its window, and do searched rescale factors take it "
        "further than the published methods do?"
    )
    sentences: list[str] = []
    figures: list[Figure] = []
    inside = perplexity.best_perplexity(model="base", method="none", length=window)
    reach = _reach(perplexity.where(model=extended, method="ours"), inside, window=window)
    if is_number(inside) and reach:
        sentences.append(
            f"By perplexity, to {reach:,} tokens: beyond the window and up to there the extended model is no worse "
            f"than the base model inside it ({number(inside)})."
        )
        figures.append(Figure(f"{reach:,}", f"tokens by perplexity, from a window of {window:,}"))
    elif is_number(inside) and len(perplexity.where(model=extended, method="ours")):
        sentences.append(
            "By perplexity, not beyond the window: at the next length measured the extended model is worse than the "
            f"base model inside it ({number(inside)})."
        )
        figures.append(Figure(f"{window:,}", "tokens by perplexity, which is the window"))
    measured = perplexity.where(model=extended, method="ours").lengths()
    longest = target if target in measured else max(measured, default=0)
    which = "the longest length measured" if longest == max(measured, default=0) else "the target"
    ours = perplexity.best_perplexity(model=extended, method="ours", length=longest)
    best = perplexity.best_case(model=extended, method=baselines(), length=longest)
    if is_number(ours) and best is not None and is_number(best["perplexity"]):
        published = number(best["perplexity"])
        lower = round(100 * (1 - ours / best["perplexity"]))
        how = f"{lower} % lower than" if lower > 0 else f"{-lower} % higher than" if lower else "within 1 % of"
        sentences.append(
            f"At {longest:,} tokens, {which}, its perplexity is {number(ours)}: {how} that "
            f"of the best published method on the same weights and documents, {style(best['method'])[0]} ({published})."
        )
        figures.append(Figure(number(ours), f"perplexity at {longest:,}; best published method {published}"))
    if accuracies := passkey.where(model=extended, method="ours").accuracies():
        reliable = list(takewhile(lambda length: accuracies[length] >= RELIABLE, accuracies))
        shares = ", ".join(f"{100 * share:.0f} % at {length:,}" for length, share in accuracies.items())
        text = f"to {reliable[-1]:,} tokens" if reliable else "at no measured length"
        sentences.append(
            f"By retrieval, {text}: that is how far it finds a five-digit key in at least {100 * RELIABLE:.0f} % of "
            f"the trials ({shares})."
        )
        value = f"{reliable[-1]:,}" if reliable else "none"
        figures.append(Figure(value, f"tokens by retrieval, {100 * RELIABLE:.0f} % of keys"))
    if checks:
        passed = sum(bool(check["passed"]) for check in checks)
        figures.append(Figure(f"{passed} of {len(checks)}", "checks passed"))
    return Answer(question, tuple(sentences), tuple(figures))


def _reach(ours: ResultTable, inside: float | None, *, window: int) -> int:
    """The longest length beyond ``window`` up to which no perplexity of ours exceeds ``inside``; 0 for none."""
    beyond = [length for length in ours.lengths() if length > window]
    good = takewhile(lambda length: inside and max(ours.where(length=length).values("perplexity")) <= inside, beyond)
    return max(good, default=0)
