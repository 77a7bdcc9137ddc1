"""What the road promises, as claims with a measured figure and its limit. Nothing here is rounded or excused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.evaluate.baselines import METHODS
from ropewalk.evaluate.compare import best_case
from ropewalk.evaluate.passkey import accuracy

_NAMES = {"none": "plain RoPE", "pi": "PI", "ntk": "NTK-aware", "dynamic_ntk": "dynamic NTK", "yarn": "YaRN"}


@dataclass(frozen=True)
class Check:
    claim: str
    measured: float
    limit: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _below(claim: str, measured: float, limit: float) -> Check:
    return Check(claim, measured, limit, measured < limit)


def _at_most(claim: str, measured: float, limit: float) -> Check:
    return Check(claim, measured, limit, measured <= limit)


def checks(
    rows: Sequence[dict[str, Any]], passkey_rows: Sequence[dict[str, Any]], *, window: int, target: int
) -> list[Check]:
    """The pass/fail table from rows of `compare.measure` and `road.Road.passkeys`.

    Args:
        window: the base model's original window, tokens.
        target: the first target, tokens; lengths beyond it were never trained on.
    """

    def base(method: str, length: int) -> float:
        return best_case(rows, model="base", method=method, length=length)

    def tuned(method: str, length: int, documents: str) -> float:
        return best_case(rows, model="finetuned", method=method, length=length, document_set=documents)

    ours = base("ours", target)
    found = [
        _below(
            f"Without fine-tuning, perplexity at {target:,}: ours below {_NAMES[method]}", ours, base(method, target)
        )
        for method in METHODS
    ]
    tuned_target = tuned("ours", target, "all")
    in_window = base("none", window)
    control = best_case(rows, model="control", method="none", length=window)
    found += [
        _below(f"Fine-tuned at {target:,}: perplexity below the base model's at {window:,}", tuned_target, in_window),
        _below(
            f"Fine-tuned at {target:,}: perplexity below that of a control trained as long at {window:,}",
            tuned_target,
            control,
        ),
    ]
    beyond = sorted({row["length"] for row in rows if row["model"] == "finetuned" and row["length"] > target})
    for length in beyond:
        best = min(METHODS, key=lambda method: tuned(method, length, "long"))
        found.append(
            _below(
                f"At {length:,}, not trained there: below the best baseline on the same model ({_NAMES[best]})",
                tuned("ours", length, "long"),
                tuned(best, length, "long"),
            )
        )
    for length in beyond:
        limit = 1.1 if length <= 4 * target else 1.25
        ratio = tuned("ours", length, "long") / tuned("ours", target, "long")
        found.append(_at_most(f"Perplexity at {length:,} over that at {target:,}, same documents", ratio, limit))
    found.append(
        _at_most(
            f"Recovered factors at {window:,}: perplexity over the base model's own",
            tuned("ours", window, "all") / in_window,
            1.03,
        )
    )
    for length in sorted({row["length"] for row in passkey_rows if row["length"] <= target}):
        own = [r for r in passkey_rows if (r["model"], r["method"], r["length"]) == ("finetuned", "ours", length)]
        share = accuracy(own)
        found.append(Check(f"Passkey accuracy at {length:,}", share, 0.9, share >= 0.9))
    return found
