"""Closed forms against numbers that the authors' own code gave, and against what their formulas mean."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.rope import RopeScaling, methods, ramps

LLAMA3: dict[str, Any] = {"rotary_dim": 128, "base": 500_000.0, "original_length": 8192}
LLAMA: dict[str, Any] = {"rotary_dim": 64, "base": 10_000.0, "original_length": 4096}
SMALL: dict[str, Any] = {"rotary_dim": 64, "base": 10_000.0, "original_length": 256}


def frequencies(scaling: RopeScaling, base: float) -> list[float]:
    plain = methods.inverse_frequencies(scaling.rotary_dim, base)
    return [frequency / factor for frequency, factor in zip(plain, scaling.factors, strict=True)]


# What yarn_radix3 of scaled_rope/LlamaYaRNRadix.py of github.com/mattian7/mrRoPE (d1a6f31) leaves in inv_freq, by pair.
MRROPE = [
    (
        (LLAMA3, 16),
        {
            0: 1.0, 18: 0.02495541, 19: 0.01996403, 20: 0.01568418, 24: 0.004984423, 28: 0.001185351,
            32: 0.0002109396, 34: 7.981661e-05, 35: 4.778106e-05, 36: 3.892328e-05, 63: 1.534463e-07,
        },
    ),
    (
        (LLAMA, 8),
        {
            0: 1.0, 9: 0.07498942, 10: 0.05623413, 11: 0.04121696, 16: 0.006188631, 20: 0.000899863,
            22: 0.0002991733, 23: 0.0001666902, 24: 0.000125, 31: 1.666902e-05,
        },
    ),
    (
        (SMALL, 8),
        {
            0: 1.0, 1: 0.7329527, 2: 0.5250828, 6: 0.1100512, 10: 0.01600208, 12: 0.005320138,
            13: 0.002964217, 14: 0.002222849, 31: 1.666902e-05,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("size", "expected"), MRROPE)
def test_mrrope_pro_has_the_frequencies_of_its_authors_code(
    size: tuple[dict[str, Any], int], expected: dict[int, float]
) -> None:
    sizes, ratio = size
    scaling = ramps.mrrope_pro(**sizes, target_length=ratio * sizes["original_length"])
    actual = frequencies(scaling, sizes["base"])
    # The code computes in float32, and gives seven digits.
    assert [actual[pair] for pair in expected] == pytest.approx(list(expected.values()), rel=1e-6)
    assert scaling.attention_factor == pytest.approx({8: 1.2079441541679836, 16: 1.2772588722239782}[ratio])


# What LlamaRotaryEmbedding of modeling_cope.py of github.com/hrlics/CoPE (8eca9bc) leaves in inv_freq from pair 42 on:
# the last 20 of 64 pairs are tapered, which begin at the critical pair of a window of 3,300 tokens.
COPE = (
    *(0.002371374, 0.002053525, 0.001778279, 0.001529425, 0.001297395, 0.001085191, 0.0008945703, 0.000726233),
    *(0.0005800237, 0.0004551177, 0.000350194, 0.0002635905, 0.0001934365, 0.0001377646, 9.460025e-05, 6.203229e-05),
    *(3.826428e-05, 2.165025e-05, 1.071647e-05, 4.171869e-06, 9.093733e-07, 0.0),
)


def test_cope_has_the_frequencies_of_its_authors_code() -> None:
    scaling = ramps.cope(rotary_dim=128, base=10_000.0, original_length=3300, target_length=4 * 3300)
    assert frequencies(scaling, 10_000.0)[42:] == pytest.approx(COPE, rel=1e-5, abs=1e-12)
    assert scaling.factors[:45] == (1.0,) * 45
    assert scaling.attention_factor == 1.0


sizes_of = st.fixed_dictionaries(
    {
        "rotary_dim": st.integers(2, 64).map(lambda pairs: 2 * pairs),
        "base": st.floats(1e3, 1e7),
        "original_length": st.integers(64, 32_768),
    }
)
shares = st.floats(0.5, 1.0)


@given(sizes_of, st.integers(2, 64), shares)
def test_copes_last_pair_stands_still_and_every_factor_can_be_written(
    sizes: dict[str, Any], ratio: int, share: float
) -> None:
    scaling = ramps.cope(**sizes, target_length=ratio * sizes["original_length"], share=share)
    pairs, first = len(scaling.factors), max(round(share * ramps.critical_pair(**sizes)), 1)
    assert all(low <= high for low, high in zip(scaling.factors, scaling.factors[1:], strict=False))
    assert scaling.factors[: first + 1] == (1.0,) * min(first + 1, pairs)
    if first < pairs - 1:
        assert scaling.factors[-1] == pytest.approx(ramps.ZERO_FREQUENCY)
    assert RopeScaling.from_json(scaling.to_json()) == scaling


@given(sizes_of, st.integers(2, 64))
def test_the_exponents_rise_by_q_and_by_what_a_spline_has_left(sizes: dict[str, Any], ratio: int) -> None:
    """MrRoPE-Pro's steps grow as 1, 2, 3 …; TailSpline's shrink by them, from (n + 1) n / 2 down to n."""
    low, high = ramps.ramp_ends(**sizes)
    width = max(int(high - low), 1)
    pairs = range(int(low), min(int(low) + width, sizes["rotary_dim"] // 2 - 1))
    for method in (ramps.mrrope_pro, ramps.tailspline):
        scaling = method(**sizes, target_length=ratio * sizes["original_length"])
        exponents = [math.log(factor, ratio) for factor in scaling.factors]
        steps = [exponents[pair + 1] - exponents[pair] for pair in pairs]
        places = [pair - int(low) + 1 for pair in pairs]
        triangle = width * (width + 1) / 2
        weights = {
            "mrrope_pro": [place / triangle for place in places],
            "tailspline": [
                3 * (width * (width + 1) - place * (place - 1)) / (2 * triangle * (2 * width + 1)) for place in places
            ],
        }
        assert steps == pytest.approx(weights[scaling.method], abs=1e-9)
        assert exponents[: int(low) + 1] == pytest.approx([0.0] * len(exponents[: int(low) + 1]))
        assert exponents[int(low) + width :] == pytest.approx([1.0] * len(exponents[int(low) + width :]))


@given(sizes_of, st.integers(2, 64), shares)
def test_from_the_real_critical_pair_on_every_pair_is_divided_by_s(
    sizes: dict[str, Any], ratio: int, share: float
) -> None:
    target_length = ratio * sizes["original_length"]
    critical = max(round(share * ramps.critical_pair(**sizes)), 1)
    for method in (ramps.ntk_rcd, ramps.yarn_rcd):
        factors = method(**sizes, target_length=target_length, share=share).factors
        assert factors[critical + 1 :] == pytest.approx([ratio] * len(factors[critical + 1 :]))
    ntk = ramps.ntk_rcd(**sizes, target_length=target_length, share=share).factors[:critical]
    assert ntk == pytest.approx([ratio ** (pair / critical) for pair in range(len(ntk))])


def test_yarn_that_ends_at_the_theoretical_critical_pair_is_yarn() -> None:
    for sizes in (LLAMA3, LLAMA, SMALL):
        target_length = 8 * sizes["original_length"]
        ours = ramps.yarn_rcd(**sizes, target_length=target_length, share=1.0)
        assert ours == methods.yarn(**sizes, target_length=target_length)


def test_critical_pair_is_the_first_whose_period_exceeds_the_window() -> None:
    for sizes in (LLAMA3, LLAMA, SMALL):
        plain = methods.inverse_frequencies(sizes["rotary_dim"], sizes["base"])
        periods = [2 * math.pi / frequency for frequency in plain]
        first = next(pair for pair, period in enumerate(periods) if period > sizes["original_length"])
        assert ramps.critical_pair(**sizes) == first
