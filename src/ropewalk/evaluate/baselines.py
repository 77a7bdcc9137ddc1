"""The published methods in their best case: every sensible choice of s and of the temperature, replacing our factors or
on top of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ropewalk.rope import RopeScaling, RotaryShape
from ropewalk.rope.methods import METHODS
from ropewalk.rope.scaling import yarn_attention_factor


@dataclass(frozen=True)
class Variant:
    method: str
    label: str
    """Names the choice of s and of the temperature, and whether the method replaces our factors or is composed with
    them."""
    scaling: RopeScaling


def variants(method: str, shape: RotaryShape, *, length: int, target: int, suffix: str = "") -> list[Variant]:
    """Variants of ``method`` on a model with its original window, with s for this length and with s for the target."""
    return list(_variants(method, shape, None, length=length, target=target, suffix=suffix))


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
    under, or for a method with a temperature the one for the whole extension.

    Args:
        name: label of ``first`` itself, which stands in for the method ``none`` on top of it.
    """
    replaced = variants(method, shape, length=length, target=target, suffix=", replaced")
    if method == "none":
        return [*replaced, Variant("none", name, replace(first, method="none"))]
    return [*replaced, *_variants(method, shape, first, length=length, target=target, suffix=", composed")]


def _variants(
    method: str, shape: RotaryShape, first: RopeScaling | None, *, length: int, target: int, suffix: str
) -> Iterable[Variant]:
    """Distinct scalings of ``method``, composed with ``first`` where that is given."""
    entry = METHODS[method]
    if entry.variants is None:
        raise ValueError(f"{method} has no variants to choose the best of")
    window = replace(shape, original_length=first.target_length) if first else shape
    distinct: dict[tuple[tuple[float, ...], float], Variant] = {}
    for goal in (length, target):
        reach = max(goal, window.original_length)
        choices = entry.variants(ratio=reach / window.original_length, base=shape.base, length=length)
        for label, options in choices.items():
            scaling = entry(**vars(window), target_length=reach, **options)
            if first:
                scaling = first.then(replace(scaling, attention_factor=first.attention_factor))
            for label_suffix, scaling_at_temperature in _tempered(scaling, entry.temperatures):
                variant = Variant(method, label + label_suffix + suffix, scaling_at_temperature)
                distinct.setdefault((scaling_at_temperature.factors, scaling_at_temperature.attention_factor), variant)
    return distinct.values()


def _tempered(scaling: RopeScaling, weights: Sequence[float]) -> Iterator[tuple[str, RopeScaling]]:
    """(suffix of the label, scaling) for each weight of the temperature; the first weight needs no suffix."""
    if not weights:
        yield "", scaling
    for number, weight in enumerate(weights):
        temperature = yarn_attention_factor(scaling.ratio, weight)
        yield f", t={temperature:.4g}" if number else "", replace(scaling, attention_factor=temperature)


def variants_trained(method: str, shape: RotaryShape, *, length: int, target: int) -> list[Variant]:
    """``method`` on a model fine-tuned under it for ``target``: as trained, and beyond that with s for the length."""
    labels = {target: "as trained"}
    if length > target:
        labels[length] = f"s={length / shape.original_length:g}"
    return [
        Variant(method, label, METHODS[method](**vars(shape), target_length=goal)) for goal, label in labels.items()
    ]
