"""Scalings as a table and a figure: factors, periods, the critical dimension and what they do at which length."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ropewalk.report.style import FAINT, OURS, log_y, panels_of
from ropewalk.rope import LengthSwitch, RotaryShape
from ropewalk.rope.profile import PairProfile, profile
from ropewalk.rope.ramps import critical_pair

_HEADER = f"{'pair':>4} {'period':>12} {'factor':>9} {'period now':>13} {'turns in window':>16} {'trained up to':>14}"


def profile_rows(switch: LengthSwitch, shape: RotaryShape) -> list[dict[str, Any]]:
    """A row per scaling and pair."""
    return [
        {"up_to_length": up_to, **pair.__dict__}
        for up_to, scaling in switch
        for pair in profile(scaling, base=shape.base)
    ]


def profile_text(switch: LengthSwitch, shape: RotaryShape) -> str:
    """The table as lines of text, 80 columns wide at most."""
    critical = critical_pair(rotary_dim=shape.rotary_dim, base=shape.base, original_length=shape.original_length)
    lines = [
        f"{shape.rotary_dim} rotary dimensions, base {shape.base:,.0f}, "
        f"original window {shape.original_length:,} tokens",
        f"critical dimension {2 * critical} (pair {critical}): from there on a period is longer than the window",
    ]
    for up_to, scaling in switch:
        pairs = profile(scaling, base=shape.base)
        lines += [
            "",
            f"inputs up to {up_to:,} tokens: attention factor {scaling.attention_factor:.4g}, n_hat {scaling.n_hat}",
            _HEADER,
            *(_line(pair, critical) for pair in pairs),
            _verdict(pairs, up_to),
        ]
    return "\n".join(lines)


def _line(pair: PairProfile, critical: int) -> str:
    reach = "any length" if math.isinf(pair.trained_up_to) else f"{pair.trained_up_to:,.0f}"
    return (
        f"{pair.pair:>4} {pair.plain_period:>12,.1f} {pair.factor:>9.3f} {pair.period:>13,.1f} "
        f"{pair.turns_in_window:>16.2f} {reach:>14}{' <' if pair.pair == critical else ''}"
    )


def _verdict(pairs: Sequence[PairProfile], length: int) -> str:
    short = [pair for pair in pairs if pair.trained_up_to < length]
    if not short:
        return f"At {length:,} tokens no pair meets an angle that it did not meet in training."
    first = min(short, key=lambda pair: pair.trained_up_to)
    return (
        f"At {length:,} tokens {len(short)} of {len(pairs)} pairs meet angles that they did not meet in training; "
        f"the first is pair {first.pair}, beyond {first.trained_up_to:,.0f} tokens."
    )


def profile_figure(switch: LengthSwitch, shape: RotaryShape) -> Figure:
    """Factors by pair on the left, periods on the right, with the critical pair, the window and the targets."""
    figure, (left, right) = panels_of(2, columns=2, height=4.4)
    critical = critical_pair(rotary_dim=shape.rotary_dim, base=shape.base, original_length=shape.original_length)
    plain = [pair.plain_period for pair in profile(switch.longest, base=shape.base)]
    right.plot(range(len(plain)), plain, "--", color=FAINT, label="plain RoPE")
    for place, (up_to, scaling) in enumerate(switch):
        colour = OURS[round(place * (len(OURS) - 1) / max(len(switch) - 1, 1))]
        label = f"inputs up to {up_to:,}"
        pairs = profile(scaling, base=shape.base)
        places = [pair.pair for pair in pairs]
        left.plot(places, [pair.factor for pair in pairs], "-o", color=colour, markersize=3.5, label=label)
        right.plot(places, [pair.period for pair in pairs], "-o", color=colour, markersize=3.5)
        right.axhline(up_to, color=colour, linewidth=0.8, linestyle=":")
    right.axhline(shape.original_length, color=FAINT, linewidth=1)
    for axes in (left, right):
        axes.axvline(critical, color=FAINT, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("dimension pair, highest frequency first")
    log_y(left, [factor for _, scaling in switch for factor in (1.0, *scaling.factors)])
    log_y(right, [*plain, *(p * f for _, s in switch for p, f in zip(plain, s.factors, strict=True))])
    left.set_ylabel("rescale factor λ (log scale)")
    right.set_ylabel("period, tokens (log scale)")
    left.set_title("Factors; the upright line is the critical pair", fontsize=10.5, loc="left")
    right.set_title("Periods; lines across: the window, the targets", fontsize=10.5, loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)
    return figure
