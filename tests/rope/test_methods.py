"""Every method against transformers' own function, or against its formula where transformers has none."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.rope import RopeScaling, methods

pytestmark = pytest.mark.numeric

# (head dimension, share of it that is rotary, base, original length, s)
SIZES = [
    (16, 1.0, 10_000.0, 256, 8.0),
    (64, 1.0, 10_000.0, 256, 8.0),
    (64, 0.5, 10_000.0, 2048, 4.0),
    (80, 0.4, 10_000.0, 2048, 2.0),
    (128, 1.0, 10_000.0, 4096, 32.0),
    (128, 1.0, 1e6, 32_768, 4.0),
    (128, 0.25, 500_000.0, 8192, 8.0),
    (96, 0.75, 250_000.0, 4096, 2.5),
    # YaRN's ramp beyond the last pair, beyond the last dimension, and of no width.
    (64, 1.0, 1000.0, 32_768, 4.0),
    (32, 1.0, 20.0, 2200, 4.0),
    (16, 1.0, 10_000.0, 6, 8.0),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
Size = tuple[int, float, float, int, float]


def published(size: Size, rope_type: str, *, current_length: int | None = None, **more: Any) -> tuple[Any, float]:
    """Inverse frequencies and attention factor of transformers' own function."""
    head_dim, partial, base, original_length, ratio = size
    parameters = {"rope_type": rope_type, "rope_theta": base, "partial_rotary_factor": partial, "factor": ratio}
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=original_length if rope_type == "dynamic" else int(original_length * ratio),
        rope_parameters={**parameters, **more},
    )
    return ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=current_length)


def ours(name: str, size: Size, **more: Any) -> RopeScaling:
    head_dim, partial, base, original_length, ratio = size
    return methods.METHODS[name](
        rotary_dim=int(head_dim * partial),
        base=base,
        original_length=original_length,
        target_length=int(original_length * ratio),
        **more,
    )


def assert_same(scaling: RopeScaling, size: Size, expected: tuple[Any, float]) -> None:
    head_dim, partial, base, _, ratio = size
    plain = methods.inverse_frequencies(int(head_dim * partial), base)
    actual = torch.tensor([frequency / factor for frequency, factor in zip(plain, scaling.factors, strict=True)])
    # transformers rounds to float32 an exponent, which a power multiplies by ln(base), and the weights of a ramp, whose
    # error is that of a frequency s times as high; a few more roundings follow.
    rtol = (math.log(base) / 2 + 2 * ratio + 4) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(actual, expected[0], rtol=rtol, atol=0)
    assert scaling.attention_factor == pytest.approx(expected[1], abs=1e-6)


@sizes
def test_none_is_the_default_rotary_table(size: Size) -> None:
    head_dim, partial, base, _, _ = size
    dimension = int(head_dim * partial)
    plain = 1.0 / base ** (torch.arange(0, dimension, 2).float() / dimension)
    assert_same(ours("none", size), size, (plain, 1.0))


@sizes
def test_pi_equals_transformers_linear(size: Size) -> None:
    assert_same(ours("pi", size), size, published(size, "linear"))


@sizes
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("length_ratio", [0.5, 1.0, 1.5, 8.0])
def test_dynamic_ntk_equals_transformers_dynamic(size: Size, factor: float, length_ratio: float) -> None:
    length = int(size[3] * length_ratio)
    scaling = ours("dynamic_ntk", size, factor=factor, current_length=length)
    assert_same(scaling, size, published(size, "dynamic", factor=factor, current_length=length))


@sizes
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate": False},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"attention_factor": 1.3},
        {"mscale": 1.0, "mscale_all_dim": 0.7},
        {"mscale": 0.7},
    ],
    ids=str,
)
def test_yarn_equals_transformers_yarn(size: Size, options: dict[str, Any]) -> None:
    expected = published(size, "yarn", original_max_position_embeddings=size[3], **options)
    assert_same(ours("yarn", size, **options), size, expected)


@sizes
@pytest.mark.parametrize("low_and_high", [(1.0, 4.0), (1.0, 32.0), (0.5, 2.0)], ids=str)
def test_llama3_equals_transformers_llama3(size: Size, low_and_high: tuple[float, float]) -> None:
    options: dict[str, Any] = {"low_freq_factor": low_and_high[0], "high_freq_factor": low_and_high[1]}
    expected = published(size, "llama3", original_max_position_embeddings=size[3], **options)
    assert_same(ours("llama3", size, **options), size, expected)


@sizes
@pytest.mark.parametrize("attention_factor", [None, 1.1])
def test_longrope_equals_transformers_longrope(size: Size, attention_factor: float | None) -> None:
    pairs = int(size[0] * size[1]) // 2
    factors = tuple(1 + size[4] * pair / pairs for pair in range(pairs))
    expected = published(
        size,
        "longrope",
        current_length=size[3] + 1,
        original_max_position_embeddings=size[3],
        short_factor=[1.0] * pairs,
        long_factor=list(factors),
        attention_factor=attention_factor,
    )
    assert_same(ours("longrope", size, factors=factors, attention_factor=attention_factor), size, expected)


@sizes
def test_ntk_is_a_larger_base(size: Size) -> None:
    head_dim, partial, base, _, ratio = size
    dimension = int(head_dim * partial)
    for multiple in (1.0, 2.0):
        larger = base * (multiple * ratio) ** (dimension / (dimension - 2))
        plain = torch.tensor(methods.inverse_frequencies(dimension, larger))
        assert_same(ours("ntk", size, multiple=multiple), size, (plain, 1.0))


@sizes
def test_abf_is_the_new_base(size: Size) -> None:
    plain = torch.tensor(methods.inverse_frequencies(int(size[0] * size[1]), 2e6))
    assert_same(ours("abf", size, new_base=2e6), size, (plain, 1.0))


def test_dynamic_ntk_with_factor_8_at_8_windows_has_scale_57() -> None:
    scaling = methods.dynamic_ntk(rotary_dim=64, base=1e4, original_length=256, target_length=2048, factor=8.0)
    # The last pair of NTK is divided by s itself.
    assert scaling.factors[-1] == pytest.approx(57.0)


def test_dynamic_ntk_is_plain_inside_the_window() -> None:
    scaling = methods.dynamic_ntk(
        rotary_dim=64, base=1e4, original_length=256, target_length=2048, factor=8.0, current_length=200
    )
    assert scaling.factors == (1.0,) * 32


def test_dynamic_longrope_goes_from_plain_to_the_searched_factors() -> None:
    factors = (1.0, 2.0, 5.0, 8.0)
    at = {
        length: methods.longrope(
            rotary_dim=8, base=1e4, original_length=256, target_length=2048, factors=factors, current_length=length
        ).factors
        for length in (128, 256, 1152, 2048, 4096)
    }
    assert at[128] == at[256] == (1.0,) * 4
    assert at[1152] == pytest.approx((1.0, 1.5, 3.0, 4.5))
    assert at[2048] == at[4096] == factors


def test_longrope_refuses_factors_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"found 3 rescale factors.*the model has 8"):
        methods.longrope(rotary_dim=8, base=1e4, original_length=256, target_length=2048, factors=(1.0, 1.0, 2.0))


any_size = {
    "rotary_dim": st.integers(2, 64).map(lambda pairs: 2 * pairs),
    "base": st.floats(1e3, 1e7),
    "original_length": st.integers(64, 32_768),
    "ratio": st.floats(1.0, 64.0),
}


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in {"abf", "cope", "longrope"}])
def test_factors_never_fall_and_stay_between_1_and_s(name: str) -> None:
    @given(**any_size)
    def holds(rotary_dim: int, base: float, original_length: int, ratio: float) -> None:
        target_length = int(original_length * ratio)
        scaling = methods.METHODS[name](
            rotary_dim=rotary_dim, base=base, original_length=original_length, target_length=target_length
        )
        assert len(scaling.factors) == rotary_dim // 2
        assert all(low <= high * (1 + 1e-12) for low, high in zip(scaling.factors, scaling.factors[1:], strict=False))
        assert min(scaling.factors) >= 1 - 1e-12
        assert max(scaling.factors) <= scaling.ratio * (1 + 1e-9)

    holds()


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in {"abf", "longrope"}])
def test_no_extension_is_plain_rope(name: str) -> None:
    scaling = methods.METHODS[name](rotary_dim=64, base=1e4, original_length=256, target_length=256)
    assert scaling.factors == pytest.approx((1.0,) * 32)
    assert scaling.attention_factor == 1.0
