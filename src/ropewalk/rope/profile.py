"""What a scaling does to each dimension pair: its period, and up to which length its angles are those of training."""

import math
from dataclasses import dataclass

from ropewalk.rope.methods import critical_pair, inverse_frequencies
from ropewalk.rope.scaling import RopeScaling


@dataclass(frozen=True)
class PairProfile:
    """One dimension pair; periods and lengths in tokens."""

    pair: int
    plain_period: float
    factor: float
    period: float
    turns_in_window: float
    """Turns that the pair made over the original window in training."""
    turns_at_target: float
    trained_up_to: float
    """Longest input whose angles the pair met in training: the original window times the factor; infinite for pairs
    that turned at least once in training (those before the critical one)."""


def profile(scaling: RopeScaling, *, base: float) -> list[PairProfile]:
    """A `PairProfile` of each pair, highest frequency first.

    >>> from ropewalk.rope import methods
    >>> pi = methods.pi(rotary_dim=8, base=10_000.0, original_length=256, target_length=1024)
    >>> slowest = profile(pi, base=10_000.0)[-1]
    >>> slowest.factor, slowest.trained_up_to
    (4.0, 1024.0)
    """
    original = scaling.original_length
    critical = critical_pair(rotary_dim=scaling.rotary_dim, base=base, original_length=original)
    found = []
    for pair, (frequency, factor) in enumerate(
        zip(inverse_frequencies(scaling.rotary_dim, base), scaling.factors, strict=True)
    ):
        plain = 2 * math.pi / frequency
        found.append(
            PairProfile(
                pair=pair,
                plain_period=plain,
                factor=factor,
                period=plain * factor,
                turns_in_window=original / plain,
                turns_at_target=scaling.target_length / (plain * factor),
                trained_up_to=math.inf if pair < critical else original * factor,
            )
        )
    return found
