"""What a run paid: forward tokens of the searches and of fine-tuning, in one unit that no machine changes."""

from collections.abc import Mapping
from typing import Any

from ropewalk.report.style import token_count
from ropewalk.report.tables import Table, number, setting, table

_SEARCHES = {"search_first": "First search", "search_second": "Second search", "recover": "Recovery"}
_TRAININGS = {"first": "Fine-tuning, first part", "second": "Fine-tuning, second part"}
_PER_TRAINED_TOKEN = 3
"""A forward pass, and a backward pass that costs two."""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def cost_table(metrics: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Table | None:
    """Steps, trials and forward tokens of each search and training.

    Args:
        metrics: by stage, what the search stages wrote to ``metrics/``.
        config: the whole configuration as plain values.
    """
    body: list[tuple[str, ...]] = []
    paid: list[float] = []
    for stage, title in _SEARCHES.items():
        for key, own in metrics.get(stage, {}).items():
            if not key.startswith("at_") or not isinstance(own, Mapping) or "forward_tokens" not in own:
                continue
            start, end = own.get("seed_search_perplexity"), own.get("search_perplexity")
            gain = f"{number(start)} → {number(end)}" if start and end and start != end else number(end or float("nan"))
            length = int(key.removeprefix("at_"))
            body.append(
                (f"{title}, {length:,} tokens", f"{own.get('gradient_steps', 0):,}", f"{own.get('trials', 0):,}", gain)
            )
            paid.append(float(own["forward_tokens"]))
    for part, title in _TRAININGS.items():
        step = setting(config, f"finetune.{part}")
        if isinstance(step, Mapping) and {"steps", "rows", "length"} <= set(step):
            body.append((f"{title}, {step['length']:,} tokens", f"{step['steps']:,}", "–", "–"))
            paid.append(float(_PER_TRAINED_TOKEN * step["steps"] * step["rows"] * step["length"]))
    if not paid:
        return None
    whole = sum(paid)
    rows = [(*row, token_count(own), _percent(own / whole)) for row, own in zip(body, paid, strict=True)]
    header = (
        "", "gradient or optimizer steps", "trials", "perplexity, search documents", "forward tokens", "share",
    )  # fmt: skip
    note = (
        "A backward pass counts as two forward passes. The perplexity is that of the gradient's result and that after "
        "the trials, or of the end alone."
    )
    return table("Cost of the searches beside that of fine-tuning", header, rows, (note,))
