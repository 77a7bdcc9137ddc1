"""The rotary module against the formula, and extended models against transformers' own scaled models."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ropewalk.rope import (
    RopeScaling,
    RotaryEmbedding,
    current_scaling,
    extend,
    find_rotary,
    methods,
    rotary_shape,
)
from tiny_models import (
    ROPE_MODELS,
    WINDOW,
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_mistral,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
    tiny_rounding,
    token_rows,
)
from tolerances import relative_error

pytestmark = pytest.mark.numeric

TARGET = 4 * WINDOW
LLAMA_ROTARY = tiny_llama().model.rotary_emb
every_model = pytest.mark.parametrize("kind", ROPE_MODELS)


def scaling_for(model: Any, name: str, **more: Any) -> RopeScaling:
    shape = rotary_shape(model)
    return methods.METHODS[name](
        rotary_dim=shape.rotary_dim,
        base=shape.base,
        original_length=shape.original_length,
        target_length=TARGET,
        **more,
    )


def logits(model: Any, length: int = TARGET) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(token_rows(length)).logits
    return output


@settings(deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 64.0), min_size=4, max_size=4),
    n_hat=st.integers(0, 40),
    attention_factor=st.floats(0.5, 2.0),
    start=st.integers(0, 64),
)
def test_the_module_is_the_formula(factors: list[float], n_hat: int, attention_factor: float, start: int) -> None:
    frequencies = methods.inverse_frequencies(8, 10_000.0)
    scaling = RopeScaling(tuple(factors), 64, 256, n_hat, attention_factor)
    rotary = RotaryEmbedding(LLAMA_ROTARY, torch.tensor(frequencies), scaling)
    cos, sin = rotary(torch.zeros(1), torch.arange(start, start + 16)[None])
    assert cos.shape == sin.shape == (1, 16, 8)
    for row, n in enumerate(range(start, start + 16)):
        for pair, frequency in enumerate(frequencies):
            angle = n * frequency if n < n_hat else n * frequency / factors[pair]
            for place in (pair, pair + 4):
                # The frequency, the factor, their quotient and the angle are rounded by at most half of eps each.
                error = attention_factor * (2 * angle + 4) * torch.finfo(torch.float32).eps
                assert cos[0, row, place].item() == pytest.approx(attention_factor * math.cos(angle), abs=error)
                assert sin[0, row, place].item() == pytest.approx(attention_factor * math.sin(angle), abs=error)


@settings(deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 64.0), min_size=4, max_size=4),
    n_hat=st.integers(0, 40),
    attention_factor=st.floats(0.5, 2.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_cos_and_sin_are_the_formulas_to_the_bit(
    factors: list[float], n_hat: int, attention_factor: float, dtype: torch.dtype
) -> None:
    inv_freq = torch.tensor(methods.inverse_frequencies(8, 10_000.0))
    rotary = RotaryEmbedding(LLAMA_ROTARY, inv_freq, RopeScaling(tuple(factors), 64, 256, n_hat, attention_factor))
    ids = torch.tensor([[0, 1, n_hat, 17, 63, 64, 65_537], [5, 6, 7, 8, 9, 10, 11]])
    positions = ids[..., None].float()
    angles = torch.where(positions < n_hat, positions * inv_freq, positions * (inv_freq / torch.tensor(factors)))
    angles = torch.cat((angles, angles), dim=-1)
    for table, turned in zip(rotary(torch.zeros(1, dtype=dtype), ids), (angles.cos(), angles.sin()), strict=True):
        assert torch.equal(table, (turned * torch.tensor(attention_factor)).to(dtype))


@every_model
def test_lambda_1_leaves_logits_unchanged(kind: str) -> None:
    model = ROPE_MODELS[kind]()
    plain = logits(model)
    assert torch.equal(logits(extend(model, scaling_for(model, "none"))), plain)


@every_model
@pytest.mark.parametrize("n_hat", [TARGET, TARGET + 1])
def test_n_hat_beyond_the_input_leaves_logits_unchanged(kind: str, n_hat: int) -> None:
    model = ROPE_MODELS[kind]()
    plain = logits(model)
    pairs = rotary_shape(model).rotary_dim // 2
    scaling = scaling_for(model, "longrope", factors=(3.0,) * pairs, n_hat=n_hat, attention_factor=1.0)
    assert torch.equal(logits(extend(model, scaling)), plain)


@every_model
def test_a_scaling_changes_logits_and_another_replaces_it(kind: str) -> None:
    model = ROPE_MODELS[kind]()
    plain = logits(model)
    scaling = scaling_for(model, "yarn")
    assert extend(model, scaling) is model
    assert relative_error(logits(model), plain) > 100 * tiny_rounding(TARGET)
    assert current_scaling(model) == scaling
    assert torch.equal(logits(extend(model, scaling_for(model, "none"))), plain)


@every_model
def test_the_shape_is_the_models_own(kind: str) -> None:
    model = ROPE_MODELS[kind]()
    before = rotary_shape(model)
    parameters = model.config.rope_parameters
    head_dim = getattr(model.config, "head_dim", None) or 64 // 4
    assert before.rotary_dim == int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    assert before.base == parameters["rope_theta"]
    assert before.original_length == WINDOW
    assert rotary_shape(extend(model, scaling_for(model, "pi"))) == before


def scaled_parameters(model: Any, rope_type: str) -> tuple[dict[str, Any], RopeScaling]:
    """rope_parameters of a scaled transformers model, and our scaling for the same."""
    parameters = {**model.config.rope_parameters, "rope_type": rope_type}
    if rope_type == "linear":
        return {**parameters, "factor": TARGET / WINDOW}, scaling_for(model, "pi")
    parameters["original_max_position_embeddings"] = WINDOW
    if rope_type == "yarn":
        return {**parameters, "factor": TARGET / WINDOW}, scaling_for(model, "yarn")
    if rope_type == "llama3":
        more = {"factor": TARGET / WINDOW, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return {**parameters, **more}, scaling_for(model, "llama3")
    factors = tuple(1.0 + 0.5 * pair for pair in range(rotary_shape(model).rotary_dim // 2))
    lists = {"short_factor": list(factors), "long_factor": list(factors)}
    return {**parameters, **lists}, scaling_for(model, "longrope", factors=factors)


SCALED = [
    *((kind, rope_type) for kind in ROPE_MODELS if kind != "phi3" for rope_type in ("linear", "yarn", "longrope")),
    ("llama", "llama3"),
    ("phi3", "longrope"),  # the only kind that Phi-3's config takes
]


@pytest.mark.parametrize(("kind", "rope_type"), SCALED)
def test_an_extended_model_equals_transformers_scaled_model(kind: str, rope_type: str) -> None:
    model = ROPE_MODELS[kind]()
    parameters, scaling = scaled_parameters(model, rope_type)
    # Phi-3 and longrope take s from the two lengths.
    changes = {"max_position_embeddings": TARGET, "original_max_position_embeddings": WINDOW}
    theirs = ROPE_MODELS[kind](rope_parameters=parameters, **changes)
    theirs.load_state_dict(model.state_dict())
    assert relative_error(logits(extend(model, scaling)), logits(theirs)) < tiny_rounding(TARGET)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "longrope", "llama3"])
def test_extend_replaces_a_scaling_that_the_checkpoint_had(rope_type: str) -> None:
    plain = tiny_llama()
    if rope_type == "dynamic":
        parameters = {**plain.config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    else:
        parameters, _ = scaled_parameters(plain, rope_type)
    scaled = tiny_llama(rope_parameters=parameters)
    logits(scaled)  # so that a table that grows with its input has grown
    scaling = RopeScaling((1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0), WINDOW, TARGET, 4, 1.1)
    assert relative_error(logits(extend(scaled, scaling)), logits(extend(plain, scaling))) < tiny_rounding(TARGET)


def test_the_same_input_read_in_steps_gives_the_same_logits() -> None:
    model = tiny_llama()
    extend(model, scaling_for(model, "yarn"))
    rows = token_rows(24)
    with torch.no_grad():
        whole = model(rows).logits
        first = model(rows[:, :16], use_cache=True)
        rest = model(rows[:, 16:], past_key_values=first.past_key_values).logits
    assert relative_error(torch.cat((first.logits, rest), dim=1), whole) < tiny_rounding(24)


@pytest.mark.parametrize("cast_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_stay_float32_whatever_the_dtype(dtype: torch.dtype, cast_first: bool) -> None:
    model = tiny_llama()
    scaling = scaling_for(model, "yarn")
    exact = find_rotary(extend(tiny_llama(), scaling))[1]
    model = extend(model.to(dtype), scaling) if cast_first else extend(model, scaling).to(dtype)
    rotary = find_rotary(model)[1]
    positions = torch.arange(60_000, 60_064)[None]
    for actual, expected in zip(
        rotary(torch.zeros(1, dtype=dtype), positions), exact(torch.zeros(1), positions), strict=True
    ):
        assert actual.dtype == dtype
        assert torch.equal(actual, expected.to(dtype))
    assert rotary(torch.zeros(1), positions)[0].dtype == torch.float32


def test_angles_stay_float32_under_autocast() -> None:
    rotary = find_rotary(extend(tiny_llama(), RopeScaling((2.0,) * 8, WINDOW, TARGET)))[1]
    positions = torch.arange(60_000, 60_064)[None]
    exact = rotary(torch.zeros(1), positions)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary(torch.zeros(1), positions)[0], exact)


def test_gradients_reach_factors_and_attention_factor() -> None:
    model = tiny_llama()
    extend(model, scaling_for(model, "yarn"))
    rotary: Any = find_rotary(model)[1]
    rotary.factors = rotary.factors.clone().requires_grad_()
    rotary.attention_factor = rotary.attention_factor.clone().requires_grad_()
    model(token_rows(32)).logits.square().sum().backward()
    assert rotary.factors.grad.abs().min() > 0
    assert rotary.attention_factor.grad.abs() > 0


def test_the_state_dict_is_not_changed() -> None:
    model = tiny_llama()
    names = set(model.state_dict())
    assert set(extend(model, scaling_for(model, "pi")).state_dict()) == names


def test_a_table_shared_by_the_layers_is_replaced_everywhere() -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.shared_rotary = model.model.rotary_emb
    extend(model, scaling_for(model, "pi"))
    assert all(layer.self_attn.shared_rotary is model.model.rotary_emb for layer in model.model.layers)
    assert isinstance(model.model.rotary_emb, RotaryEmbedding)


@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3, tiny_phi3, tiny_gpt_neox])
def test_factors_of_another_size_are_refused(make: Any) -> None:
    model = make()
    pairs = rotary_shape(model).rotary_dim // 2
    with pytest.raises(ValueError, match=rf"found {pairs + 1} rescale factors.*the model has {2 * pairs}"):
        extend(model, RopeScaling((1.0,) * (pairs + 1), WINDOW, TARGET))
    assert current_scaling(model) is None


def test_a_model_without_rope_is_refused() -> None:
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no rotary position embedding"):
        extend(tiny_gpt2(), RopeScaling((1.0,) * 8, WINDOW, TARGET))


def test_several_tables_that_differ_are_refused_by_name() -> None:
    reader = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    both = nn.ModuleDict({"writer": tiny_llama(), "reader": reader})
    message = r"2 different rotary tables \(writer\.model\.rotary_emb, reader\.model\.rotary_emb\)"
    with pytest.raises(ValueError, match=message):
        extend(both, RopeScaling((1.0,) * 8, WINDOW, TARGET))
