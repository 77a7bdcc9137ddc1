"""Scalings between and beyond those that a switch holds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.rope import LengthSwitch, RopeScaling, methods
from ropewalk.rope.length_switch import interpolated

PLAIN = RopeScaling((1.0,) * 8, 64, 64, method="none")
LONG = RopeScaling((1.0, 1.0, 1.1, 1.5, 2.0, 4.0, 8.0, 8.5), 64, 512, n_hat=3, attention_factor=1.2)
SWITCH = LengthSwitch(((64, PLAIN), (512, LONG)))
factors = st.lists(st.floats(1.0, 64.0), min_size=8, max_size=8).map(lambda values: tuple(sorted(values)))


@given(factors, factors, st.integers(65, 511))
def test_between_two_scalings_every_factor_lies_between_theirs(
    first: tuple[float, ...], last: tuple[float, ...], n: int
) -> None:
    shorter, longer = RopeScaling(first, 64, 64), RopeScaling(last, 64, 512, attention_factor=1.3)
    between = interpolated((64, shorter), (512, longer), length=n)
    for low, middle, high in zip(first, between.factors, last, strict=True):
        assert min(low, high) * (1 - 1e-9) <= middle <= max(low, high) * (1 + 1e-9)
    assert 1 <= between.attention_factor <= 1.3
    assert (between.target_length, between.original_length) == (n, 64)


def test_the_ends_are_the_two_scalings_themselves() -> None:
    for length, scaling in SWITCH:
        between = interpolated(*SWITCH.entries, length=length)
        assert between.factors == pytest.approx(scaling.factors)
        assert between.attention_factor == pytest.approx(scaling.attention_factor)


def test_from_plain_rope_it_is_the_ntk_aware_scaling_of_every_length() -> None:
    sizes = {"rotary_dim": 16, "base": 10_000.0, "original_length": 64}
    long = methods.ntk(**sizes, target_length=512)
    for length in (128, 300, 1024):
        between = interpolated((64, PLAIN), (512, long), length=length)
        assert between.factors == pytest.approx(methods.ntk(**sizes, target_length=length).factors)


def test_doublings_lie_between_the_entries_that_there_were() -> None:
    filled = SWITCH.with_doublings
    assert filled.lengths == (64, 128, 256, 512)
    assert [filled.for_length(n) for n in (64, 512)] == [PLAIN, LONG]
    assert filled.for_length(200).factors == pytest.approx(tuple(factor ** (2 / 3) for factor in LONG.factors))
    assert filled.for_length(128).n_hat == 3
    assert filled.with_doublings == filled
    assert LengthSwitch(((64, PLAIN), (100, LONG))).with_doublings.lengths == (64, 100)
    assert LengthSwitch(((64, PLAIN),)).with_doublings.lengths == (64,)


def test_beyond_the_last_entry_the_scaling_goes_on_at_doublings() -> None:
    assert SWITCH.entry_for(512) == (512, LONG)
    for length, up_to in ((513, 1024), (1024, 1024), (1025, 2048)):
        entry_length, scaling = SWITCH.entry_for(length)
        share = math.log(up_to / 64) / math.log(8)
        assert (entry_length, scaling.target_length) == (up_to, up_to)
        assert scaling.factors == pytest.approx(tuple(factor**share for factor in LONG.factors))
        assert scaling.attention_factor == pytest.approx(1.2**share)
    assert SWITCH.for_length(600) == SWITCH.for_length(1000), (
        "a continuation does not change its scaling at every token"
    )
    assert LengthSwitch(((512, LONG),)).for_length(5000) == LONG


def test_what_a_trained_model_takes_for_short_inputs_does_not_flatten_the_continuation() -> None:
    recovered = RopeScaling((1.0, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 3.0), 64, 64, attention_factor=1.1)
    assert LengthSwitch(((64, recovered), (512, LONG))).for_length(1024) == SWITCH.for_length(1024)
    # A checkpoint's scaling is for more than the original window, and a further one continues from it.
    published = RopeScaling((1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 2.0, 2.0), 32, 64)
    longer = RopeScaling(LONG.factors, 32, 512, attention_factor=1.2)
    continued = LengthSwitch(((64, published), (512, longer))).for_length(1024)
    assert continued == interpolated((64, published), (512, longer), length=1024)
