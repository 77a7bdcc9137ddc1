"""What the road promises, as claims with a measured figure and its limit. Nothing here is rounded or excused."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.evaluate.baselines import METHODS
from ropewalk.evaluate.compare import best_case
from ropewalk.evaluate.passkey import accuracy

_NAMES = {
    "none": "plain RoPE",
    "pi": "PI",
    "ntk": "NTK-aware",
    "dynamic_ntk": "dynamic NTK",
    "abf": "ABF",
    "yarn": "YaRN",
}


@dataclass(frozen=True)
class Check:
    claim: str
    measured: float
    limit: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Figure = float | None
"""None when it was not measured."""


def _below(claim: str, measured: Figure, limit: Figure) -> Iterator[Check]:
    if measured is not None and limit is not None:
        yield Check(claim, measured, limit, measured < limit)


def _ratio_at_most(claim: str, above: Figure, below: Figure, limit: float) -> Iterator[Check]:
    if above is not None and below is not None:
        yield Check(claim, above / below, limit, above / below <= limit)


def checks(
    rows: Sequence[dict[str, Any]], passkey_rows: Sequence[dict[str, Any]], *, window: int, target: int
) -> list[Check]:
    """The pass/fail table from rows of `compare.measure` and `road.Road.passkeys`.

    A claim that a shorter evaluation did not measure (no control, or without that length) is left out.

    Args:
        window: the base model's original window, tokens.
        target: the first target, tokens; lengths beyond it were never trained on.
    """

    def figure(model: str, method: str, length: int, documents: str = "all") -> Figure:
        try:
            return best_case(rows, model=model, method=method, length=length, document_set=documents)
        except KeyError:
            return None

    found: list[Check] = []
    for method in METHODS:
        claim = f"Without fine-tuning, perplexity at {target:,}: ours below {_NAMES[method]}"
        found += _below(claim, figure("base", "ours", target), figure("base", method, target))
    tuned = figure("finetuned", "ours", target)
    in_window, control = figure("base", "none", window), figure("control", "none", window)
    found += _below(f"Fine-tuned at {target:,}: perplexity below the base model's at {window:,}", tuned, in_window)
    found += _below(
        f"Fine-tuned at {target:,}: perplexity below that of a control trained as long at {window:,}", tuned, control
    )
    beyond = sorted({row["length"] for row in rows if row["model"] == "finetuned" and row["length"] > target})
    for length in beyond:
        baselines = [(figure("finetuned", method, length, "long"), _NAMES[method]) for method in METHODS]
        for limit, name in sorted((limit, name) for limit, name in baselines if limit is not None)[:1]:
            claim = f"At {length:,}, not trained there: below the best baseline on the same model ({name})"
            found += _below(claim, figure("finetuned", "ours", length, "long"), limit)
    for length in beyond:
        found += _ratio_at_most(
            f"Perplexity at {length:,} over that at {target:,}, same documents",
            figure("finetuned", "ours", length, "long"),
            figure("finetuned", "ours", target, "long"),
            1.1 if length <= 4 * target else 1.25,
        )
    recovered = f"Recovered factors at {window:,}: perplexity over the base model's own"
    found += _ratio_at_most(recovered, figure("finetuned", "ours", window), in_window, 1.03)
    for length in sorted({row["length"] for row in passkey_rows if row["length"] <= target}):
        own = [r for r in passkey_rows if (r["model"], r["method"], r["length"]) == ("finetuned", "ours", length)]
        if own:
            share = accuracy(own)
            found.append(Check(f"Passkey accuracy at {length:,}", share, 0.9, share >= 0.9))
    return found
