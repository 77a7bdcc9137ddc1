"""Long rows in tiles where layers' inputs are held in host memory: the same gradients in less memory."""

from typing import Any

import pytest
import torch
from torch import nn

from ropewalk.models import activation_checkpointing
from ropewalk.models.activation_checkpointing import checkpointed, token_wise_modules
from ropewalk.models.loss import mean_loss
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary, rotary_shape
from tiny_models import ROPE_MODELS, tiny_llama, tiny_of, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric
LENGTH, TILE = 90, 32
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}


def gradients(model: Any, kind: str) -> dict[str, torch.Tensor]:
    """Of the weights and of the rescale factors."""
    pairs = rotary_shape(model).rotary_dim // 2
    rotary = find_rotary(extend(model, RopeScaling((1.0,) * pairs, 64, 256)))[1]
    assert isinstance(rotary, RotaryEmbedding)
    rotary.factors = torch.linspace(1, 4, pairs).requires_grad_()
    model.zero_grad()
    model.train()
    with checkpointed(model, kind):
        mean_loss(model, token_rows(LENGTH)).backward()
    model.eval()
    assert rotary.factors.grad is not None
    weights = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**weights, "factors": rotary.factors.grad}


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_tiles_give_the_same_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ROPE_MODELS[kind]()
    expected = gradients(model, "full")
    monkeypatch.setattr(activation_checkpointing, "TILE", TILE)
    lengths: list[int] = []
    feed_forward = next(module for module in token_wise_modules(model) if list(module.children()))
    product = next(part for part in feed_forward.modules() if isinstance(part, nn.Linear))
    product.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    tiled = gradients(model, "offload")
    assert tiled.keys() == expected.keys()
    for name, gradient in tiled.items():
        assert relative_error(gradient, expected[name]) < tiny_rounding(LENGTH), name
    # A tile is of both rows.
    assert set(lengths) == {TILE // 2, LENGTH % (TILE // 2)}
    assert not any("forward" in vars(module) for module in model.modules())


def test_norms_and_feed_forward_modules_are_tiled_and_attention_is_not() -> None:
    model = tiny_llama()
    layers = model.model.layers
    expected = [part for layer in layers for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)]
    assert token_wise_modules(model) == expected


def test_a_model_with_recurrent_layers_is_not_tiled() -> None:
    assert token_wise_modules(tiny_of("bamba", **MAMBA, attn_layer_indices=[1])) == []
