"""What software that knows neither n_hat nor our choice of factors by input length loses in perplexity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ropewalk.evaluate.compare import Reading
from ropewalk.evaluate.perplexity import DocumentSet
from ropewalk.rope import LengthSwitch, RopeScaling, scaling_for_length

AS_MEASURED, NO_N_HAT, SAME, RECOVERED = "with ropewalk", "without n_hat", "same", "recovered"
"""Ways to apply a switch: all of it; its factors by length but n_hat = 0; and the two choices of export.short_factor
as plain transformers applies them."""


def exported_scalings(switch: LengthSwitch, short_factor: str) -> tuple[RopeScaling, RopeScaling]:
    """(short, long): what plain transformers applies to inputs up to the original window, and to longer ones.

    n_hat is 0 in both, and both have the long one's attention factor, since config.json has one field for it.
    """
    long = replace(switch[-1][1], n_hat=0)
    if short_factor == SAME:
        return long, long
    short = scaling_for_length(switch, long.original_length)
    return replace(short, n_hat=0, attention_factor=long.attention_factor), long


def cost_readings(
    switch: LengthSwitch, lengths: Sequence[int], *, target: int, short: DocumentSet, long: DocumentSet | None
) -> Iterator[Reading]:
    """The switch at every length, as it is and as other software applies it.

    Args:
        target: the length up to which the documents ``short`` are read; beyond it, ``long``.
    """
    for length in lengths:
        own = scaling_for_length(switch, length)
        ways = {AS_MEASURED: own, NO_N_HAT: replace(own, n_hat=0)}
        for short_factor in (SAME, RECOVERED):
            of_short, of_long = exported_scalings(switch, short_factor)
            ways[short_factor] = of_short if length <= own.original_length else of_long
        documents = short if length <= target else long
        assert documents is not None
        for way, scaling in ways.items():
            yield Reading("finetuned", "ours", way, scaling, length, documents)


def costs(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Perplexity by length and way, from the rows measured of `cost_readings`."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        found.setdefault(int(row["length"]), {})[str(row["variant"])] = float(row["perplexity"])
    return dict(sorted(found.items()))


def cost_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """By way and length, per cent of perplexity above what the switch itself gives."""
    found: dict[str, Any] = {}
    for length, by_way in costs(rows).items():
        for way in (NO_N_HAT, SAME, RECOVERED):
            percent = 100 * (by_way[way] / by_way[AS_MEASURED] - 1)
            found.setdefault(f"percent_lost_{way.replace(' ', '_')}", {})[str(length)] = percent
    return found
