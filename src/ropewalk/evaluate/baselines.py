"""The published methods in their best case: every sensible choice of s, replacing our factors or on top of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ropewalk.rope import RopeScaling, RotaryShape, methods

METHODS = ("none", "pi", "ntk", "dynamic_ntk", "abf", "yarn")
_LARGER_BASES = (50, 100)
"""Multiples of the base that ABF tries: from 10,000 to 500,000, its paper's (arXiv 2309.16039), and CodeLlama's 1e6."""


@dataclass(frozen=True)
class Variant:
    method: str
    label: str
    """The choice of s, and whether it replaces our factors or is composed with them."""
    scaling: RopeScaling


def variants(method: str, shape: RotaryShape, *, length: int, target: int) -> list[Variant]:
    """``method`` on a model with its original window: s of this length and s of the target (NTK-aware also at 2s).

    ABF has no s: it multiplies the base wherever something is to be extended.
    """
    return _variants(method, shape, length=length, target=target, suffix="")


def variants_on(
    method: str,
    shape: RotaryShape,
    first: RopeScaling,
    *,
    length: int,
    target: int,
    name: str = "our factors for the fine-tuned length",
) -> list[Variant]:
    """``method`` on a model trained under ``first``, called ``name``: in place of its factors, and on top of them.

    On top, s counts from ``first``'s target, and the attention factor is the one the model was trained
    under, for YaRN its temperature for the whole extension.
    """
    replaced = _variants(method, shape, length=length, target=target, suffix=", replaced")
    if method == "none":
        return [*replaced, Variant("none", name, replace(first, method="none"))]
    window = replace(shape, original_length=first.target_length)
    composed = []
    for variant in _variants(method, window, length=length, target=target, suffix=", composed"):
        ratio = max(variant.scaling.target_length, first.target_length) / shape.original_length
        temperature = 0.1 * math.log(ratio) + 1 if method == "yarn" else first.attention_factor
        scaling = first.then(replace(variant.scaling, attention_factor=temperature))
        composed.append(replace(variant, scaling=scaling))
    return replaced + composed


def variants_trained(method: str, shape: RotaryShape, *, length: int, target: int) -> list[Variant]:
    """``method`` on a model that was fine-tuned under it for ``target``: as trained, and beyond it s of the length."""
    made = [Variant(method, "as trained", methods.for_training(method, **vars(shape), target_length=target))]
    if length > target:
        scaling = methods.for_training(method, **vars(shape), target_length=length)
        made.append(Variant(method, f"s={length / shape.original_length:g}", scaling))
    return made


def _variants(method: str, shape: RotaryShape, *, length: int, target: int, suffix: str) -> list[Variant]:
    made: dict[tuple[float, ...], Variant] = {}
    function: Callable[..., RopeScaling] = methods.METHODS[method]
    for goal in (length, target):
        reach = max(goal, shape.original_length)
        sizes = {
            "rotary_dim": shape.rotary_dim,
            "base": shape.base,
            "original_length": shape.original_length,
            "target_length": reach,
        }
        ratio = reach / shape.original_length
        if method == "none":
            options: list[tuple[str, dict[str, float]]] = [("plain", {})]
        elif method == "ntk":
            options = [(f"s={ratio:g}", {}), (f"2s={2 * ratio:g}", {"multiple": 2.0})]
        elif method == "dynamic_ntk":
            sizes["current_length"] = length
            options = [("factor=1", {}), (f"factor={ratio:g}", {"factor": ratio})]
        elif method == "abf":
            multiples = _LARGER_BASES if ratio > 1 else (1,)
            options = [(f"base x{multiple}", {"new_base": shape.base * multiple}) for multiple in multiples]
        else:
            options = [(f"s={ratio:g}", {})]
        for label, extra in options:
            scaling = function(**sizes, **extra)
            made.setdefault(scaling.factors, Variant(method, label + suffix, scaling))
    return list(made.values())
