"""The published methods as functions from sizes to a RopeScaling. Formulas: LongRoPE (arXiv 2402.13753),
YaRN (2309.00071), and transformers' ``modeling_rope_utils``, which each equals where it has the method."""

import math
from collections.abc import Callable

from ropewalk.rope.scaling import RopeScaling, su_attention_factor


def inverse_frequencies(rotary_dim: int, base: float) -> list[float]:
    """Plain RoPE: base^(-2i/d), radians per token."""
    return [base ** (-2 * pair / rotary_dim) for pair in range(rotary_dim // 2)]


def critical_pair(*, rotary_dim: int, base: float, original_length: int) -> int:
    """First pair whose period exceeds the training window (LongRoPE2's d_tcd / 2)."""
    pairs = rotary_dim / 2
    return min(max(math.ceil(pairs * math.log(original_length / (2 * math.pi), base)), 0), rotary_dim // 2)


def none(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """Plain RoPE, read beyond its window as it is."""
    return RopeScaling((1.0,) * (rotary_dim // 2), original_length, target_length, method="none")


def pi(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """Position interpolation: every frequency divided by s (HF: linear)."""
    ratio = target_length / original_length
    return RopeScaling((ratio,) * (rotary_dim // 2), original_length, target_length, method="pi")


def _larger_base(rotary_dim: int, ratio: float) -> tuple[float, ...]:
    """Factors ratio^(i / (d/2)), what multiplying the base by ``ratio`` does."""
    return tuple(ratio ** (2 * pair / rotary_dim) for pair in range(rotary_dim // 2))


def _ntk_factors(rotary_dim: int, scale: float) -> tuple[float, ...]:
    return _larger_base(rotary_dim, scale ** (rotary_dim / (rotary_dim - 2)))


def ntk(
    *, rotary_dim: int, base: float, original_length: int, target_length: int, multiple: float = 1.0
) -> RopeScaling:
    """NTK-aware: base * (multiple * s)^(d/(d-2)); ``multiple`` of 2 is a common choice."""
    scale = multiple * target_length / original_length
    return RopeScaling(_ntk_factors(rotary_dim, scale), original_length, target_length, method="ntk")


def dynamic_ntk(
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    factor: float = 1.0,
    current_length: int | None = None,
) -> RopeScaling:
    """NTK-aware with s = f*L/L0 - (f-1) from the current length L, plain RoPE up to L0 (HF: dynamic, freshly started).

    ``current_length`` defaults to the target length.
    """
    length = target_length if current_length is None else current_length
    scale = factor * max(length, original_length) / original_length - (factor - 1)
    return RopeScaling(_ntk_factors(rotary_dim, scale), original_length, target_length, method="dynamic_ntk")


def abf(
    *, rotary_dim: int, base: float, original_length: int, target_length: int, new_base: float = 1e6
) -> RopeScaling:
    """Adjusted base frequency; CodeLlama's is 1e6."""
    return RopeScaling(_larger_base(rotary_dim, new_base / base), original_length, target_length, method="abf")


def yarn(
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    attention_factor: float | None = None,
) -> RopeScaling:
    """YaRN: high frequencies kept, low ones divided by s, a ramp between; temperature 0.1 ln(s) + 1."""
    ratio = target_length / original_length

    def dimension(rotations: float) -> float:
        return rotary_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    kept = [1 - min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(rotary_dim // 2)]

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(ratio) + 1 if ratio > 1 else 1.0

    if attention_factor is None:
        attention_factor = (
            temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)
        )
    factors = tuple(1 / ((1 - keep) / ratio + keep) for keep in kept)
    return RopeScaling(factors, original_length, target_length, attention_factor=attention_factor, method="yarn")


def llama3(
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> RopeScaling:
    """Llama 3.1: periods above L0 / low_freq_factor divided by s, below L0 / high_freq_factor kept, blended between."""
    ratio = target_length / original_length
    factors = []
    for frequency in inverse_frequencies(rotary_dim, base):
        turns = original_length * frequency / (2 * math.pi)
        kept = min(max((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / ratio + kept))
    return RopeScaling(tuple(factors), original_length, target_length, method="llama3")


def longrope(
    *,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    factors: tuple[float, ...],
    n_hat: int = 0,
    attention_factor: float | None = None,
    current_length: int | None = None,
) -> RopeScaling:
    """Searched factors; with ``current_length`` L, LongRoPE's dynamic form 1 + (lambda - 1) * (L/L0 - 1) / (s - 1).

    ``attention_factor`` defaults to sqrt(1 + ln s / ln L0).

    Raises:
        ValueError: not rotary_dim / 2 factors.
    """
    ratio = target_length / original_length
    if current_length is not None and ratio > 1:
        share = min(max((current_length / original_length - 1) / (ratio - 1), 0.0), 1.0)
        factors = tuple(1 + (factor - 1) * share for factor in factors)
    if attention_factor is None:
        attention_factor = su_attention_factor(ratio, original_length)
    scaling = RopeScaling(tuple(factors), original_length, target_length, n_hat, attention_factor)
    scaling.check_rotary_dim(rotary_dim)
    return scaling


TRAINED = ("pi", "ntk", "yarn")
"""Methods that models are commonly fine-tuned under."""


def for_training(method: str, *, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """The scaling that ``method``, one of `TRAINED`, is fine-tuned under: its defaults, for the target length."""
    return METHODS[method](
        rotary_dim=rotary_dim, base=base, original_length=original_length, target_length=target_length
    )


METHODS: dict[str, Callable[..., RopeScaling]] = {
    "none": none,
    "pi": pi,
    "ntk": ntk,
    "dynamic_ntk": dynamic_ntk,
    "abf": abf,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}
