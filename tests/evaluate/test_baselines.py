"""The baselines' best case: which choices of s there are, and what "composed" means."""

import math
from dataclasses import replace

import pytest

from ropewalk.evaluate.baselines import variants, variants_on
from ropewalk.rope import RopeScaling, RotaryShape, methods

SHAPE = RotaryShape(16, 10_000.0, 64)
FIRST = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.3), 64, 256, n_hat=2, attention_factor=1.1)


def labels(method: str, length: int, target: int = 256) -> list[str]:
    return [variant.label for variant in variants(method, SHAPE, length=length, target=target)]


def test_every_choice_of_s_is_tried() -> None:
    assert labels("none", 128) == ["plain"]
    assert labels("pi", 128) == ["s=2", "s=4"]
    assert labels("yarn", 128) == ["s=2", "s=2, t=1.052", "s=2, t=1", "s=4", "s=4, t=1.104", "s=4, t=1"]
    # The real critical pairs of a critical pair of 3 are 2 and 3, and its taper does not depend on s.
    assert labels("ntk_rcd", 256) == [
        *("s=4, rcd at 0.5", "s=4, rcd at 0.5, t=1.104", "s=4, rcd at 0.5, t=1"),
        *("s=4, rcd at 0.875", "s=4, rcd at 0.875, t=1.104", "s=4, rcd at 0.875, t=1"),
    ]
    assert labels("cope", 256)[:3] == ["taper from 1", "taper from 1, t=1.104", "taper from 1, t=1.139"]
    assert labels("ntk", 128) == ["s=2", "2s=4", "2s=8"]  # s=4 is 2s=4 again
    assert labels("dynamic_ntk", 128) == ["factor=1", "factor=2", "factor=4"]
    assert labels("pi", 256) == ["s=4"]
    assert labels("abf", 128) == ["base x50", "base x100"]


@pytest.mark.parametrize("method", [name for name in methods.baselines() if name != "none"])
def test_in_the_window_one_choice_is_the_plain_model(method: str) -> None:
    first = variants(method, SHAPE, length=32, target=256)[0].scaling
    assert set(first.factors) == {1.0}
    assert first.attention_factor == 1.0


@pytest.mark.parametrize("method", ["pi", "ntk", "yarn", "mrrope_pro", "tailspline"])
@pytest.mark.parametrize("length", [256, 512, 1024])
def test_composed_is_the_first_scaling_with_the_method_on_top(method: str, length: int) -> None:
    composed = [v for v in variants_on(method, SHAPE, FIRST, length=length, target=1024) if "composed" in v.label]
    assert composed
    for variant in composed:
        goal = variant.scaling.target_length
        multiple = {"multiple": 2.0} if variant.label.startswith("2s") else {}
        top = methods.METHODS[method](rotary_dim=16, base=10_000.0, original_length=256, target_length=goal, **multiple)
        expected = FIRST.then(top)
        assert variant.scaling.factors == pytest.approx(expected.factors)
        assert variant.scaling.original_length == 64
    goals = {length, 1024} if length > 256 else {256, 1024}
    assert {variant.scaling.target_length for variant in composed} == goals
    for goal in goals:
        temperatures = {v.scaling.attention_factor for v in composed if v.scaling.target_length == goal}
        weights = methods.METHODS[method].temperatures
        wanted = {0.1 * weight * math.log(goal / 64) + 1 for weight in weights} or {FIRST.attention_factor}
        assert sorted(temperatures) == pytest.approx(sorted(wanted))


@pytest.mark.parametrize("method", methods.baselines())
def test_replaced_is_the_method_alone(method: str) -> None:
    alone = [variant.scaling for variant in variants(method, SHAPE, length=512, target=1024)]
    both = variants_on(method, SHAPE, FIRST, length=512, target=1024)
    replaced = [variant.scaling for variant in both if "replaced" in variant.label]
    assert replaced == alone
    assert len(both) > len(replaced)


def test_none_on_a_fine_tuned_model_is_plain_rope_or_the_factors_it_was_trained_under() -> None:
    plain, trained = variants_on("none", SHAPE, FIRST, length=512, target=1024)
    assert set(plain.scaling.factors) == {1.0}
    assert trained.scaling == replace(FIRST, method="none")


def test_abf_on_top_of_our_factors_multiplies_the_base_only_beyond_their_length() -> None:
    inside = [v.scaling.factors for v in variants_on("abf", SHAPE, FIRST, length=256, target=256) if "comp" in v.label]
    assert inside == [FIRST.factors]
    beyond = [v for v in variants_on("abf", SHAPE, FIRST, length=512, target=512) if "composed" in v.label]
    for variant, multiple in zip(beyond, (50, 100), strict=True):
        expected = [factor * multiple ** (pair / 8) for pair, factor in enumerate(FIRST.factors)]
        assert variant.scaling.factors == pytest.approx(expected)


def test_dynamic_ntk_takes_s_from_the_length_at_hand() -> None:
    for variant in variants("dynamic_ntk", SHAPE, length=128, target=256):
        factor = float(variant.label.split("=")[1])
        s = factor * 2 - (factor - 1)
        assert variant.scaling.factors == pytest.approx([s ** (2 * pair / 14) for pair in range(8)])
