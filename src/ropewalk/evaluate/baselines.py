"""The published methods in their best case: every sensible choice of s, replacing our factors or on top of them."""

import math
from dataclasses import dataclass, replace

from ropewalk.rope import RopeScaling, RotaryShape
from ropewalk.rope.methods import METHODS


@dataclass(frozen=True)
class Variant:
    method: str
    label: str
    """Names the choice of s, and whether the method replaces our factors or is composed with them."""
    scaling: RopeScaling


def variants(method: str, shape: RotaryShape, *, length: int, target: int, suffix: str = "") -> list[Variant]:
    """Variants of ``method`` on a model with its original window, with s for this length and with s for the target."""
    choices_of = METHODS[method].variants
    if choices_of is None:
        raise ValueError(f"{method} has no variants to choose the best of")
    by_factors: dict[tuple[float, ...], Variant] = {}
    for goal in (length, target):
        reach = max(goal, shape.original_length)
        choices = choices_of(ratio=reach / shape.original_length, base=shape.base, length=length)
        for label, options in choices.items():
            scaling = METHODS[method](**vars(shape), target_length=reach, **options)
            by_factors.setdefault(scaling.factors, Variant(method, label + suffix, scaling))
    return list(by_factors.values())


def variants_on(
    method: str,
    shape: RotaryShape,
    first: RopeScaling,
    *,
    length: int,
    target: int,
    name: str = "our factors for the fine-tuned length",
) -> list[Variant]:
    """Variants of ``method`` on a model trained under ``first``: in place of its factors, and on top of them.

    On top of them, s counts from ``first``'s target, and the attention factor is the one that the model was trained
    under, or for YaRN its temperature for the whole extension.

    Args:
        name: label of ``first`` itself, which stands in for the method ``none`` on top of it.
    """
    replaced = variants(method, shape, length=length, target=target, suffix=", replaced")
    if method == "none":
        return [*replaced, Variant("none", name, replace(first, method="none"))]
    window = replace(shape, original_length=first.target_length)
    composed = []
    for variant in variants(method, window, length=length, target=target, suffix=", composed"):
        ratio = max(variant.scaling.target_length, first.target_length) / shape.original_length
        temperature = 0.1 * math.log(ratio) + 1 if method == "yarn" else first.attention_factor
        scaling = first.then(replace(variant.scaling, attention_factor=temperature))
        composed.append(replace(variant, scaling=scaling))
    return replaced + composed


def variants_trained(method: str, shape: RotaryShape, *, length: int, target: int) -> list[Variant]:
    """``method`` on a model fine-tuned under it for ``target``: as trained, and beyond that with s for the length."""
    labels = {target: "as trained"}
    if length > target:
        labels[length] = f"s={length / shape.original_length:g}"
    return [
        Variant(method, label, METHODS[method](**vars(shape), target_length=goal)) for goal, label in labels.items()
    ]
