"""The question that a run asks and what its figures answer, in words and in a few numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.report.plots import is_number
from ropewalk.report.style import Row, style
from ropewalk.report.tables import BASELINES, number

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
    name: str, perplexity: Sequence[Row], passkey: Sequence[Row], checks: Sequence[Mapping[str, Any]], *, window: int
) -> Answer:
    """What the rows of ``plots/perplexity.csv`` and ``plots/passkey.csv`` say; what was not measured is left out."""
    question = (
        f"How far can {name} read beyond the {window:,} tokens of its window, and do searched rescale factors take it "
        "further than the published methods do?"
    )
    sentences: list[str] = []
    figures: list[Figure] = []
    inside = _best(perplexity, "base", ["none"], window)
    reach = _reach(perplexity, inside, window=window)
    if inside is not None and reach:
        sentences.append(
            f"By perplexity, to {reach:,} tokens: beyond the window and up to there the extended model is no worse "
            f"than the base model inside it ({number(inside)})."
        )
        figures.append(Figure(f"{reach:,}", f"tokens by perplexity, from a window of {window:,}"))
    elif inside is not None and any(row["model"] == "finetuned" for row in perplexity):
        sentences.append(
            "By perplexity, not beyond the window: at the next length measured the extended model is worse than the "
            f"base model inside it ({number(inside)})."
        )
        figures.append(Figure(f"{window:,}", "tokens by perplexity, which is the window"))
    longest = max((int(row["length"]) for row in perplexity if _is_ours(row)), default=0)
    ours = _best(perplexity, "finetuned", ["ours"], longest)
    rivals = {method: _best(perplexity, "finetuned", [method], longest) for method in BASELINES}
    measured = {method: value for method, value in rivals.items() if value is not None}
    if ours is not None and measured:
        rival = min(measured, key=lambda method: measured[method])
        lower = 100 * (1 - ours / measured[rival])
        how = f"{lower:.0f} % lower" if lower >= 0 else f"{-lower:.0f} % higher"
        sentences.append(
            f"At {longest:,} tokens, the longest length measured, its perplexity is {number(ours)}: {how} than that "
            f"of the best published method on the same weights and documents, {style(rival)[0]} "
            f"({number(measured[rival])})."
        )
        figures.append(
            Figure(number(ours), f"perplexity at {longest:,}; best published method {number(measured[rival])}")
        )
    retrieval = _retrieval(passkey)
    if retrieval:
        found = [length for length, share in retrieval.items() if share >= RELIABLE]
        reached = next((length for length, share in retrieval.items() if share < RELIABLE), None)
        until = max((length for length in found if reached is None or length < reached), default=0)
        shares = ", ".join(f"{100 * share:.0f} % at {length:,}" for length, share in retrieval.items())
        text = f"to {until:,} tokens" if until else "at no measured length"
        sentences.append(
            f"By retrieval, {text}: that is how far it finds a five-digit key in at least {100 * RELIABLE:.0f} % of "
            f"the trials ({shares})."
        )
        figures.append(
            Figure(f"{until:,}" if until else "none", f"tokens by retrieval, {100 * RELIABLE:.0f} % of keys")
        )
    if checks:
        passed = sum(bool(check["passed"]) for check in checks)
        figures.append(Figure(f"{passed} of {len(checks)}", "checks passed"))
    return Answer(question, tuple(sentences), tuple(figures))


def _is_ours(row: Row) -> bool:
    return (row["model"], row["method"]) == ("finetuned", "ours")


def _best(rows: Sequence[Row], model: str, methods: Sequence[str], length: int) -> float | None:
    found = [
        float(row["perplexity"])
        for row in rows
        if row["model"] == model
        and row["method"] in methods
        and int(row["length"]) == length
        and is_number(row["perplexity"])
    ]
    return min(found) if found else None


def _reach(rows: Sequence[Row], inside: float | None, *, window: int) -> int:
    """The longest length beyond ``window`` up to which perplexity never exceeds ``inside``; 0 for none.

    A length that was read on two sets of documents counts by the worse one.
    """
    reach = 0
    lengths = sorted({int(row["length"]) for row in rows if _is_ours(row) and int(row["length"]) > window})
    for length in lengths:
        found = [float(row["perplexity"]) for row in rows if _is_ours(row) and int(row["length"]) == length]
        if inside is None or not max(found) <= inside:
            break
        reach = length
    return reach


def _retrieval(rows: Sequence[Row]) -> dict[int, float]:
    """Share of passkeys that the fine-tuned model finds, by length."""
    found: dict[int, float] = {}
    for length in sorted({int(row["length"]) for row in rows if _is_ours(row)}):
        own = [row for row in rows if _is_ours(row) and int(row["length"]) == length]
        trials = sum(int(row["trials"]) for row in own)
        if trials:
            found[length] = sum(int(row["correct"]) for row in own) / trials
    return found
