"""The published methods as functions from sizes to a RopeScaling. Formulas: LongRoPE (arXiv 2402.13753),
YaRN (2309.00071), and transformers' ``modeling_rope_utils``, whose results are the same where it has the method."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ropewalk.registry import Registry
from ropewalk.rope import ramps
from ropewalk.rope.scaling import RopeScaling, su_attention_factor, yarn_attention_factor


def inverse_frequencies(rotary_dim: int, base: float) -> list[float]:
    """Plain RoPE: base^(-2i/d), radians per token."""
    return [base ** (-2 * pair / rotary_dim) for pair in range(rotary_dim // 2)]


def none(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """Plain RoPE, read beyond its window as it is."""
    return RopeScaling((1.0,) * (rotary_dim // 2), original_length, target_length, method="none")


def pi(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """Position interpolation: every frequency divided by s (HF: linear)."""
    ratio = target_length / original_length
    return RopeScaling((ratio,) * (rotary_dim // 2), original_length, target_length, method="pi")


def _larger_base(rotary_dim: int, ratio: float) -> tuple[float, ...]:
    """Factors ratio^(i / (d/2)), which have the effect of multiplying the base by ``ratio``."""
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
    low, high = ramps.ramp_ends(
        rotary_dim=rotary_dim,
        base=base,
        original_length=original_length,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=truncate,
    )
    if attention_factor is None:
        attention_factor = yarn_attention_factor(ratio)
        if mscale and mscale_all_dim:
            attention_factor = yarn_attention_factor(ratio, mscale) / yarn_attention_factor(ratio, mscale_all_dim)
    factors = ramps.yarn_factors(pairs=rotary_dim // 2, ratio=ratio, low=low, high=high)
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


Options = dict[str, dict[str, float]]
"""Keyword arguments of a method's function, by the label of the choice in tables."""


def _scale_alone(*, ratio: float, base: float, length: int) -> Options:
    return {f"s={ratio:g}": {}}


def _none_options(*, ratio: float, base: float, length: int) -> Options:
    return {"plain": {}}


def _ntk_options(*, ratio: float, base: float, length: int) -> Options:
    return {f"s={ratio:g}": {}, f"2s={2 * ratio:g}": {"multiple": 2.0}}


def _dynamic_ntk_options(*, ratio: float, base: float, length: int) -> Options:
    factors = {"factor=1": 1.0, f"factor={ratio:g}": ratio}
    return {label: {"factor": factor, "current_length": length} for label, factor in factors.items()}


def _abf_options(*, ratio: float, base: float, length: int) -> Options:
    """From 10,000 to 500,000, the paper's (arXiv 2309.16039), and to CodeLlama's 1e6; no change where s is 1."""
    return {f"base x{multiple}": {"new_base": base * multiple} for multiple in ((50, 100) if ratio > 1 else (1,))}


def _critical_options(*, ratio: float, base: float, length: int) -> Options:
    """Real critical pairs from half of the theoretical one up to it (LongRoPE2)."""
    return {f"s={ratio:g}, rcd at {share:g}": {"share": share} for share in (0.5, 0.625, 0.75, 0.875, 1.0)}


def _cope_options(*, ratio: float, base: float, length: int) -> Options:
    """The taper begins at the critical pair or at a faster one; it does not depend on s."""
    shares = (1.0, 0.75, 0.5)
    return {f"taper from {share:g}": {"share": share} for share in shares} if ratio > 1 else {"plain": {}}


@dataclass(frozen=True)
class Method:
    """A scaling method: everything that tables, plots, checks and the configuration know about it.

    Calling the entry calls `function`.
    """

    name: str
    function: Callable[..., RopeScaling]
    """Takes rotary_dim, base, original_length and target_length, and options of its own, by keyword."""
    display_name: str
    colour: str
    """Colour in plots, as #rrggbb; the built-in ones are Okabe and Ito's, which colour-blind readers can tell apart."""
    marker: str
    line: str = "-"
    """Line style and marker are matplotlib's."""
    trainable: bool = False
    """Whether models can be fine-tuned under it, with its defaults, for the target length."""
    compared: bool = True
    """Whether evaluate can compare it."""
    common: bool = False
    """Whether it is compared by default (rope=common), which the report's checks are about."""
    variants: Callable[..., Options] | None = _scale_alone
    """The choices among which its best case is taken, given ``ratio`` s, the ``base`` of the model's RoPE and the
    input ``length``; None where the factors are searched."""
    temperatures: tuple[float, ...] = ()
    """Weights of ln s in YaRN's temperature 0.1 ln(s) + 1, among which its best case is taken too, its default first;
    empty where the attention factor is 1."""

    def __call__(self, **arguments: Any) -> RopeScaling:
        return self.function(**arguments)


_TEMPERATURES = (1.0, 0.75, 0.0)
METHODS = Registry(
    (
        Method("none", none, "plain RoPE", "#555555", "X", "--", common=True, variants=_none_options),
        Method("pi", pi, "PI", "#e69f00", "s", trainable=True, common=True),
        Method("ntk", ntk, "NTK-aware", "#56b4e9", "^", trainable=True, common=True, variants=_ntk_options),
        Method("dynamic_ntk", dynamic_ntk, "dynamic NTK", "#009e73", "v", common=True, variants=_dynamic_ntk_options),
        Method("abf", abf, "ABF", "#b8a800", "h", common=True, variants=_abf_options),
        Method("yarn", yarn, "YaRN", "#0072b2", "D", trainable=True, common=True, temperatures=_TEMPERATURES),
        Method(
            "ntk_rcd", ramps.ntk_rcd, "NTK-rcd", "#332288", ">", "-.",
            variants=_critical_options, temperatures=_TEMPERATURES,
        ),
        Method(
            "yarn_rcd", ramps.yarn_rcd, "YaRN-rcd", "#882255", "d", "-.",
            variants=_critical_options, temperatures=_TEMPERATURES,
        ),
        Method("mrrope_pro", ramps.mrrope_pro, "MrRoPE-Pro", "#0d4d1f", "p", "-.", temperatures=_TEMPERATURES),
        Method("tailspline", ramps.tailspline, "TailSpline", "#661100", "8", "-.", temperatures=_TEMPERATURES),
        Method(
            "cope", ramps.cope, "CoPE", "#9a6bff", "H", "-.",
            variants=_cope_options, temperatures=(0.0, 0.75, 1.0),
        ),
        Method("llama3", llama3, "Llama 3", "#7a5195", "<", compared=False),
        Method("longrope", longrope, "LongRoPE", "#cc79a7", "*", common=True, variants=None),
    ),
    group="ropewalk.methods",
)  # fmt: skip


def compared() -> tuple[str, ...]:
    """Names of the methods that evaluate can compare; longrope stands for the searched factors."""
    return METHODS.names(lambda method: method.compared)


def common() -> tuple[str, ...]:
    """Names of the methods among `compared` that are compared by default."""
    return METHODS.names(lambda method: method.common)


def baselines() -> tuple[str, ...]:
    """Names of the methods among `compared` that ours, longrope, is compared with."""
    return METHODS.names(lambda method: method.compared and method.variants is not None)


def trainable() -> tuple[str, ...]:
    """Names of the methods that baselines can be fine-tuned under."""
    return METHODS.names(lambda method: method.trainable)
