"""Query scales multiply the queries of each head, or pair of a head, and nothing else; folded in, they are weights."""

from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ropewalk.evaluate.cache import scaling_key
from ropewalk.models.activation_checkpointing import checkpointed
from ropewalk.models.checks import check_folding
from ropewalk.rope import LengthSwitch, RopeScaling, current_scaling, extend, extended, rotary_shape
from ropewalk.rope.query_scales import fold, folded, query_scales
from ropewalk.rope.switching import extend_by_length
from tiny_models import ROPE_MODELS, WINDOW, tiny_llama, tiny_of, tiny_qwen3, tiny_rounding, token_rows
from tolerances import relative_error
from zoo_models import tiny_model

pytestmark = pytest.mark.numeric

TARGET = 4 * WINDOW
HEADS = 4
MODELS: dict[str, Callable[[], Any]] = {
    **ROPE_MODELS,
    "gemma3": lambda: tiny_model("gemma3_text"),
    "olmo2": lambda: tiny_of("olmo2"),
    "cohere": lambda: tiny_of("cohere"),
    "deepseek_v3": lambda: tiny_model("deepseek_v3"),
    "persimmon": lambda: tiny_model("persimmon"),
    "falcon_h1": lambda: tiny_model("falcon_h1"),
    "glm": lambda: tiny_of("glm"),
    "gpt_oss": lambda: tiny_model("gpt_oss"),
    "hunyuan": lambda: tiny_model("hunyuan_v1_dense"),
}
"""Matrices of queries alone, fused in blocks or by head, with biases, of low rank; norms before or after rotation."""


def made(name: str) -> Any:
    """The model in evaluation mode, with biases and norms that are not all zeros or ones."""
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def plain(model: Any, **changes: Any) -> RopeScaling:
    scaling = RopeScaling((1.5,) * (rotary_shape(model).rotary_dim // 2), WINDOW, TARGET, attention_factor=1.1)
    return replace(scaling, **changes)


def scales_for(model: Any, *, pairs: int = 1, seed: int = 0) -> Tensor:
    """(layers, heads, pairs) scales between 0.5 and 2.5."""
    layers = query_scales(model).layers
    shape = (layers, 1 if query_scales(model).is_shared else HEADS, pairs)
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return scales.expand(-1, HEADS, -1)


def scaling_with(model: Any, scales: Tensor) -> RopeScaling:
    return plain(model, query_scales=tuple(map(tuple, scales.flatten(1).tolist())))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(token_rows(TARGET), use_cache=False).logits
    return result


_SCALES: ContextVar[dict[Any, Tensor]] = ContextVar("scales")


def _scaled_attention(module: Any, query: Tensor, *arguments: Any, **options: Any) -> Any:
    """transformers' own attention, of queries that were multiplied when all else was done with them."""
    _SCALES.get().setdefault(module, torch.empty(0))
    scales = _SCALES.get()[module]
    query = query * scales[:, None] if len(scales) else query
    return sdpa_attention_forward(module, query, *arguments, **options)


AttentionInterface.register("scaled_queries", _scaled_attention)
AttentionMaskInterface.register("scaled_queries", sdpa_mask)


def reference(model: Any, per_dimension: Tensor) -> Tensor:
    """Logits under (layers, heads, head_dim) scales that are applied within transformers' attention."""
    before, modules = model.config._attn_implementation, dict[Any, Tensor]()
    model.set_attn_implementation("scaled_queries")
    token = _SCALES.set(modules)
    logits(model)
    modules.update(zip(modules, per_dimension, strict=True))
    result = logits(model)
    _SCALES.reset(token)
    model.set_attn_implementation(before)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_scales_per_head_multiply_the_queries_that_attention_reads_also_when_folded(name: str) -> None:
    model = made(name)
    scales = scales_for(model)
    scaling = scaling_with(model, scales)
    without = logits(extend(model, plain(model)))
    if name != "gpt_oss":  # whose attention has sinks, which sdpa has not
        size = query_scales(model).paths[0].places.shape[1]
        expected = reference(model, scales.expand(-1, -1, size))
        assert relative_error(logits(extend(model, scaling)), expected) < tiny_rounding(TARGET)
    hooked = logits(extend(model, scaling))
    assert relative_error(hooked, without) > 100 * tiny_rounding(TARGET)
    fold(model, scaling)
    assert relative_error(logits(extend(model, plain(model))), hooked) < tiny_rounding(TARGET)


LAYOUTS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "llama": lambda pairs: [pairs, pairs],
    "qwen3": lambda pairs: [pairs, pairs],
    "olmo2": lambda pairs: [pairs, pairs],
    "cohere": lambda pairs: [pairs.repeat_interleave(2, dim=-1)],
    "gpt_neox": lambda pairs: [pairs, pairs, torch.ones(*pairs.shape[:-1], 12)],
    "phi3": lambda pairs: [pairs, pairs, torch.ones(*pairs.shape[:-1], 8)],
    "glm": lambda pairs: [pairs.repeat_interleave(2, dim=-1), torch.ones(*pairs.shape[:-1], 8)],
}
"""The scales of a head's dimensions by those of its pairs: halves or neighbours, and 1 for what does not rotate."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_scales_per_pair_multiply_both_of_its_dimensions_and_leave_those_that_do_not_rotate(name: str) -> None:
    model = made(name)
    scales = scales_for(model, pairs=rotary_shape(model).rotary_dim // 2)
    extend(model, plain(model))
    expected = reference(model, torch.cat(LAYOUTS[name](scales), dim=-1))
    assert relative_error(logits(extend(model, scaling_with(model, scales))), expected) < tiny_rounding(TARGET)
    check_folding(model, scaling_with(model, scales), path=name)


def test_extending_twice_does_not_multiply_twice_and_a_scaling_without_scales_leaves_no_hook() -> None:
    model = made("llama")
    without = logits(extend(model, plain(model)))
    scaling = scaling_with(model, scales_for(model))
    once = logits(extend(model, scaling))
    assert torch.equal(logits(extend(model, scaling)), once)
    assert torch.equal(logits(deepcopy(model)), once)
    other = scaling_with(model, scales_for(model, seed=1))
    with extended(model, other):
        assert not torch.equal(logits(model), once)
    assert torch.equal(logits(model), once)
    assert current_scaling(model) == scaling
    assert torch.equal(logits(extend(model, plain(model))), without)
    assert not any(module._forward_hooks for module in model.modules())
    with extended(model, scaling):
        assert torch.equal(logits(model), once)
    assert torch.equal(logits(model), without)


def test_folded_weights_are_put_back_with_what_multiplied_the_queries_before() -> None:
    model = made("gpt_neox")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooked = logits(extend(model, scaling := scaling_with(model, scales_for(model))))
    with folded(model, scaling):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])]
    assert {name.split(".")[-2] for name in changed} == {"query_key_value"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), hooked)


def test_a_switch_by_length_applies_the_scales_at_every_length() -> None:
    model = made("llama")
    scaling = scaling_with(model, scales_for(model))
    short = replace(scaling, factors=(1.0,) * 8, target_length=WINDOW)
    expected = logits(extend(model, scaling))
    assert torch.equal(logits(extend_by_length(model, LengthSwitch(((WINDOW, short), (TARGET, scaling))))), expected)
    with pytest.raises(ValueError, match="the same query_scales, found others up to 64 tokens than up to 256"):
        LengthSwitch(((WINDOW, replace(short, query_scales=None)), (TARGET, scaling)))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("pairs", [1, 8])
def test_the_gradient_of_the_scales_is_that_of_their_numerical_difference(pairs: int, checkpointing: str) -> None:
    model = extend(made("llama").double(), plain(tiny_llama()))
    rows, scales = token_rows(WINDOW), scales_for(model, pairs=pairs).double().squeeze(-1).clone().requires_grad_()
    model.train()
    with checkpointed(model, checkpointing):
        for _ in range(2):  # each pass has a graph of its own
            query_scales(model).set(scales)
            scales.grad = None
            model(rows, labels=rows, use_cache=False).loss.backward()
    assert scales.grad is not None
    assert scales.grad.abs().min() > 0
    step, losses = 1e-4 * scales.grad / scales.grad.norm(), []
    for sign in (1, -1):
        query_scales(model).set(scales.detach() + sign * step)
        with torch.no_grad():
            losses.append(float(model(rows, labels=rows, use_cache=False).loss))
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(scales.grad.norm()), rel=1e-2)


def test_heads_under_one_norm_get_equal_gradients_and_refuse_scales_of_their_own() -> None:
    model = extend(tiny_qwen3(), plain(tiny_qwen3()))
    assert query_scales(model).is_shared
    scales = torch.ones(2, HEADS, requires_grad=True)
    query_scales(model).set(scales)
    rows = token_rows(WINDOW)
    model(rows, labels=rows).loss.backward()
    assert scales.grad is not None
    assert scales.grad.abs().min() > 0
    assert torch.equal(scales.grad, scales.grad[:, :1].expand_as(scales))
    with pytest.raises(ValueError, match="weights of one q_norm, so the heads of a layer must have equal query scales"):
        extend(model, plain(model, query_scales=((1.0, 1.0, 1.0, 1.2), (1.0,) * 4)))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("nanochat", "has no weights that scale the queries of NanoChatAttention alone"),
        ("falcon", "computes its attention in a way that query scales do not reach"),
    ],
)
def test_a_model_whose_queries_cannot_be_scaled_is_refused_with_the_reason(model_type: str, reason: str) -> None:
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=reason) as error:
        extend(model, plain(model, query_scales=((2.0,) * HEADS,) * 2))
    assert "\n" not in str(error.value)


def test_scales_of_another_model_are_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="found query_scales of 3 rows of 4, but LlamaForCausalLM has 2 layers of 4"):
        extend(model, plain(model, query_scales=((1.0,) * HEADS,) * 3))
    with pytest.raises(ValueError, match=r"shape \(2, 5\), but LlamaForCausalLM has 2 layers of 4 query heads"):
        query_scales(model).set(torch.ones(2, 5))


SCALES = st.floats(1e-3, 1e3)
TABLES = st.tuples(st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(*[st.tuples(*[SCALES] * shape[1])] * shape[0])
)


@given(TABLES)
def test_scales_are_kept_in_json_and_count_as_a_part_of_the_scaling(table: tuple[tuple[float, ...], ...]) -> None:
    bare = RopeScaling((1.0, 1.0), WINDOW, TARGET)
    scaling = replace(bare, query_scales=table)
    assert RopeScaling.from_json(scaling.to_json()) == scaling
    assert hash(scaling) == hash(replace(scaling))
    assert "query_scales" not in bare.to_json()
    assert RopeScaling.from_json(bare.to_json()) == bare
    assert scaling_key(bare) == [bare.factors, 0, 1.0]
    assert scaling_key(scaling) == [*scaling_key(bare), table]
    assert scaling.is_plain == all(scale == 1 for row in table for scale in row)


@given(TABLES)
def test_composed_scales_multiply_and_either_alone_is_kept(table: tuple[tuple[float, ...], ...]) -> None:
    bare = RopeScaling((2.0, 3.0), WINDOW, TARGET)
    scaling = replace(bare, query_scales=table)
    squares = tuple(tuple(scale * scale for scale in row) for row in table)
    assert scaling.then(scaling).query_scales == squares
    assert scaling.then(bare).query_scales == bare.then(scaling).query_scales == table
    assert bare.then(bare).query_scales is None
    with pytest.raises(ValueError, match="do not multiply; give equal shapes"):
        scaling.then(replace(bare, query_scales=(*table, table[0])))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ((), "rows of equal length, not empty, found the lengths"),
        (((),), "rows of equal length, not empty, found the lengths"),
        (((1.0,), (1.0, 1.0)), "rows of equal length, not empty, found the lengths"),
        (((1.0, 0.0),), "must be positive numbers, found 0.0"),
        (((1.0, float("nan")),), "must be positive numbers, found nan"),
    ],
)
def test_scales_that_are_no_table_of_positive_numbers_are_refused(table: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RopeScaling((1.0,), WINDOW, TARGET, query_scales=table)
