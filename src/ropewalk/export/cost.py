"""The loss in perplexity under software that supports neither n_hat nor our choice of factors by input length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ropewalk.evaluate.compare import PerplexityTask
from ropewalk.evaluate.perplexity import DocumentSets
from ropewalk.rope import LengthSwitch, RopeScaling

AS_MEASURED, NO_N_HAT, SAME, RECOVERED = "with ropewalk", "without n_hat", "same", "recovered"
"""Ways to apply a switch: in full; by length, but with n_hat = 0; and as plain transformers does under the two values
of export.short_factor."""


def exported_scalings(switch: LengthSwitch, short_factor: str) -> tuple[RopeScaling, RopeScaling]:
    """The scalings that plain transformers applies to inputs up to the original window, and to longer ones.

    n_hat is 0 in both, and both have the longer's attention factor, since config.json has one field for it.
    """
    long = replace(switch.longest, n_hat=0)
    if short_factor == SAME:
        return long, long
    short = switch.for_length(long.original_length)
    return replace(short, n_hat=0, attention_factor=long.attention_factor), long


def cost_tasks(
    model: str,
    switch: LengthSwitch,
    lengths: Sequence[int],
    sets: DocumentSets,
    *,
    target: int,
) -> Iterator[PerplexityTask]:
    """Tasks of the extended model at every length, under the whole switch and as other software applies it.

    Args:
        model: its name, finetuned or base.
        sets: documents of the lengths up to ``target`` and of those beyond it.
    """
    short, long = sets
    for length in lengths:
        measured = switch.for_length(length)
        ways = {AS_MEASURED: measured, NO_N_HAT: replace(measured, n_hat=0)}
        for short_factor in (SAME, RECOVERED):
            up_to_window, beyond = exported_scalings(switch, short_factor)
            ways[short_factor] = up_to_window if length <= measured.original_length else beyond
        documents = short if length <= target else long
        assert documents is not None
        for way, scaling in ways.items():
            yield PerplexityTask(model, "ours", way, scaling, length, documents)


def costs(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Perplexity by length and way, from the measured rows of `cost_tasks`."""
    perplexities: dict[int, dict[str, float]] = {}
    for row in rows:
        perplexities.setdefault(int(row["length"]), {})[str(row["variant"])] = float(row["perplexity"])
    return dict(sorted(perplexities.items()))


def cost_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """By how many per cent perplexity is above that of the full switch, by way and length."""
    metrics: dict[str, Any] = {}
    for length, by_way in costs(rows).items():
        for way in (NO_N_HAT, SAME, RECOVERED):
            percent = 100 * (by_way[way] / by_way[AS_MEASURED] - 1)
            metrics.setdefault(f"percent_lost_{way.replace(' ', '_')}", {})[str(length)] = percent
    return metrics
