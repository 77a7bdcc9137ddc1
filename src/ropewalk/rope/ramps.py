"""Closed forms laid out by how often a pair turns within the original window. Sources: LongRoPE2 (arXiv 2502.20082),
MrRoPE (2601.22181) and CoPE (2602.05258); the numbers of the authors' own code are in the tests."""

import math
from collections.abc import Callable

from ropewalk.rope.scaling import RopeScaling, yarn_attention_factor

ZERO_FREQUENCY = 1e9
"""Factor of a pair that does not turn: finite, so that files and exports can hold it, and within a million tokens the
pair turns by a thousandth of a radian at most."""


def critical_pair(*, rotary_dim: int, base: float, original_length: int) -> int:
    """First pair whose period exceeds the training window (LongRoPE2's d_tcd / 2)."""
    pairs = rotary_dim / 2
    return min(max(math.ceil(pairs * math.log(original_length / (2 * math.pi), base)), 0), rotary_dim // 2)


def ramp_ends(
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> tuple[float, float]:
    """YaRN's (low, high): pairs that turn ``beta_fast`` and ``beta_slow`` times in the window, as HF bounds them."""

    def pair(turns: float) -> float:
        return rotary_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, rotary_dim - 1)


def yarn_factors(*, pairs: int, ratio: float, low: float, high: float) -> tuple[float, ...]:
    """Frequencies kept up to pair ``low``, divided by ``ratio`` from ``high`` on, and blended linearly between."""
    if low == high:
        high += 0.001
    kept = (1 - min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(pairs))
    return tuple(1 / ((1 - keep) / ratio + keep) for keep in kept)


def _real_critical_pair(share: float, *, rotary_dim: int, base: float, original_length: int) -> int:
    """LongRoPE2's real critical pair, at ``share`` of the theoretical one; it is found by trying a few shares."""
    theoretical = critical_pair(rotary_dim=rotary_dim, base=base, original_length=original_length)
    return max(round(share * theoretical), 1)


def ntk_rcd(
    *, rotary_dim: int, base: float, original_length: int, target_length: int, share: float = 0.75
) -> RopeScaling:
    """NTK's power law ending at the real critical pair: s^(i / rcd) below it and s from there on."""
    ratio = target_length / original_length
    critical = _real_critical_pair(share, rotary_dim=rotary_dim, base=base, original_length=original_length)
    factors = tuple(ratio ** min(pair / critical, 1.0) for pair in range(rotary_dim // 2))
    temperature = yarn_attention_factor(ratio)
    return RopeScaling(factors, original_length, target_length, attention_factor=temperature, method="ntk_rcd")


def yarn_rcd(
    *, rotary_dim: int, base: float, original_length: int, target_length: int, share: float = 0.75
) -> RopeScaling:
    """YaRN whose ramp ends at the real critical pair, so that every pair from there on is divided by s."""
    ratio = target_length / original_length
    high = _real_critical_pair(share, rotary_dim=rotary_dim, base=base, original_length=original_length)
    low, _ = ramp_ends(rotary_dim=rotary_dim, base=base, original_length=original_length)
    factors = yarn_factors(pairs=rotary_dim // 2, ratio=ratio, low=min(low, high), high=high)
    temperature = yarn_attention_factor(ratio)
    return RopeScaling(factors, original_length, target_length, attention_factor=temperature, method="yarn_rcd")


def _powers_of_s(
    method: str,
    exponent: Callable[[float, float], float],
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
) -> RopeScaling:
    """Factors s^exponent(q, n), where q counts pairs from the low end of YaRN's ramp and n is its width."""
    ratio = target_length / original_length
    low, high = ramp_ends(rotary_dim=rotary_dim, base=base, original_length=original_length)
    width = max(high - low, 1)
    places = (min(max(pair - low, 0), width) for pair in range(rotary_dim // 2))
    factors = tuple(ratio ** exponent(place, width) for place in places)
    temperature = yarn_attention_factor(ratio)
    return RopeScaling(factors, original_length, target_length, attention_factor=temperature, method=method)


def mrrope_pro(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """MrRoPE-Pro: s^p with p = q(q+1) / (n(n+1)), so that the slower of two pairs is stretched further."""
    return _powers_of_s(
        "mrrope_pro",
        lambda q, n: q * (q + 1) / (n * (n + 1)),
        rotary_dim=rotary_dim,
        base=base,
        original_length=original_length,
        target_length=target_length,
    )


def tailspline(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """TailSpline: s^p with p = q(3n^2 + 3n + 1 - q^2) / (n(n+1)(2n+1)), which rises fast and levels off at s."""
    return _powers_of_s(
        "tailspline",
        lambda q, n: q * (3 * n**2 + 3 * n + 1 - q**2) / (n * (n + 1) * (2 * n + 1)),
        rotary_dim=rotary_dim,
        base=base,
        original_length=original_length,
        target_length=target_length,
    )


def cope(*, rotary_dim: int, base: float, original_length: int, target_length: int, share: float = 1.0) -> RopeScaling:
    """CoPE: from a critical pair on, frequencies fall to zero by half a cosine; plain RoPE where s is 1.

    The paper leaves the temperature at 1, and the factors do not depend on s.
    """
    pairs = rotary_dim // 2
    first = _real_critical_pair(share, rotary_dim=rotary_dim, base=base, original_length=original_length)
    factors = [1.0] * pairs
    for pair in range(first + 1, pairs if target_length > original_length else 0):
        kept = (1 + math.cos(math.pi * (pair - first) / (pairs - 1 - first))) / 2
        factors[pair] = 1 / max(kept, 1 / ZERO_FREQUENCY)
    return RopeScaling(tuple(factors), original_length, target_length, method="cope")
