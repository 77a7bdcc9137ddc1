"""Claims about the extension, each with a measured figure and its limit; no figure is rounded."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.rope.methods import METHODS, baselines


@dataclass(frozen=True)
class Check:
    claim: str
    measured: float
    limit: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Figure = float | None
"""A perplexity; None when it was not measured."""


def _below(claim: str, measured: Figure, limit: Figure) -> Iterator[Check]:
    if measured is not None and limit is not None:
        yield Check(claim, measured, limit, measured < limit)


def _ratio_at_most(claim: str, above: Figure, below: Figure, limit: float) -> Iterator[Check]:
    if above is not None and below is not None:
        yield Check(claim, above / below, limit, above / below <= limit)


def checks(perplexity: ResultTable, passkey: ResultTable, *, window: int, target: int, reach: int) -> list[Check]:
    """The pass/fail table of an evaluation; claims about what was not measured or not trained are left out.

    Args:
        window: the base model's original window, tokens.
        target: the first target, tokens; lengths beyond it were never trained on.
        reach: the longest length that there are factors for; nothing is claimed beyond it.
    """
    return list(_checks(perplexity, passkey, window=window, target=target, reach=reach))


def _checks(perplexity: ResultTable, passkey: ResultTable, *, window: int, target: int, reach: int) -> Iterator[Check]:
    def figure(model: str, method: str, length: int, documents: str = "all") -> Figure:
        return perplexity.best_perplexity(model=model, method=method, length=length, document_set=documents)

    for method in baselines():
        claim = f"Without fine-tuning, perplexity at {target:,}: ours below {METHODS[method].display_name}"
        yield from _below(claim, figure("base", "ours", target), figure("base", method, target))
    ours, yarn = (passkey.where(model="base", method=name, length=target).accuracy() for name in ("ours", "yarn"))
    if ours is not None and yarn is not None:
        yield Check(f"Without fine-tuning, passkeys at {target:,}: ours not below YaRN", ours, yarn, ours >= yarn)
    tuned = figure("finetuned", "ours", target)
    in_window, control = figure("base", "none", window), figure("control", "none", window)
    yield from _below(f"Fine-tuned at {target:,}: perplexity below the base model's at {window:,}", tuned, in_window)
    yield from _below(
        f"Fine-tuned at {target:,}: perplexity below that of a control trained as long at {window:,}", tuned, control
    )
    beyond = [length for length in perplexity.where(model="finetuned").lengths() if target < length <= reach]
    for length in beyond:
        best = perplexity.best_case(model="finetuned", method=baselines(), length=length, document_set="long")
        if best is not None:
            name = METHODS[best["method"]].display_name
            claim = f"At {length:,}, not trained there: below the best baseline on the same model ({name})"
            yield from _below(claim, figure("finetuned", "ours", length, "long"), best["perplexity"])
    for length in beyond:
        yield from _ratio_at_most(
            f"Perplexity at {length:,} over that at {target:,}, same documents",
            figure("finetuned", "ours", length, "long"),
            figure("finetuned", "ours", target, "long"),
            1.1 if length <= 4 * target else 1.25,
        )
    recovered = f"Recovered factors at {window:,}: perplexity over the base model's own"
    yield from _ratio_at_most(recovered, figure("finetuned", "ours", window), in_window, 1.03)
    keys = passkey.where(model="finetuned", method="ours", form="published")
    for length, accuracy in keys.accuracies().items():
        if length <= target:
            yield Check(f"Passkey accuracy at {length:,}, published form", accuracy, 0.9, accuracy >= 0.9)
