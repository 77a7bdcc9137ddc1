"""The effect of a scaling on each dimension pair: its period, and up to which length its angles occur in training."""

import math
from dataclasses import dataclass

from ropewalk.rope.methods import inverse_frequencies
from ropewalk.rope.ramps import critical_pair
from ropewalk.rope.scaling import RopeScaling


@dataclass(frozen=True)
class PairProfile:
    """One dimension pair under a scaling; periods and lengths in tokens."""

    pair: int
    plain_period: float
    factor: float
    period: float
    turns_in_window: float
    """Full rotations of the pair over the original window in training."""
    turns_at_target: float
    """Full rotations of the pair over the target length."""
    trained_up_to: float
    """Longest input whose angles all occurred in training: the original window times the factor, infinite for pairs
    before the critical one, which made a full rotation in training."""


def profile(scaling: RopeScaling, *, base: float) -> list[PairProfile]:
    """Profile of every pair, highest frequency first.

    >>> from ropewalk.rope import methods
    >>> pi = methods.pi(rotary_dim=8, base=10_000.0, original_length=256, target_length=1024)
    >>> slowest = profile(pi, base=10_000.0)[-1]
    >>> slowest.factor, slowest.trained_up_to
    (4.0, 1024.0)
    """
    original = scaling.original_length
    critical = critical_pair(rotary_dim=scaling.rotary_dim, base=base, original_length=original)
    periods = [2 * math.pi / frequency for frequency in inverse_frequencies(scaling.rotary_dim, base)]
    return [
        PairProfile(
            pair=pair,
            plain_period=period,
            factor=factor,
            period=period * factor,
            turns_in_window=original / period,
            turns_at_target=scaling.target_length / (period * factor),
            trained_up_to=math.inf if pair < critical else original * factor,
        )
        for pair, (period, factor) in enumerate(zip(periods, scaling.factors, strict=True))
    ]
