"""Long inputs in chunks: the states and losses of one pass, for every kind of attention and any scaling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ropewalk.models import prefill
from ropewalk.models.loss import long_token_losses, token_losses
from ropewalk.models.prefill import chunks, is_plain_attention, kv_bytes, kv_cache, states_after
from ropewalk.rope import RopeScaling, extend, rotary_shape
from tiny_models import ROPE_MODELS, tiny_llama, tiny_mistral, token_rows


def scaled(model: Any) -> Any:
    """Under rising factors, start tokens inside the second chunk and an attention factor."""
    pairs = rotary_shape(model).rotary_dim // 2
    factors = tuple(1 + 3 * pair / pairs for pair in range(pairs))
    return extend(model, RopeScaling(factors, 64, 256, n_hat=40, attention_factor=1.2))


@pytest.mark.parametrize("make", ROPE_MODELS.values(), ids=ROPE_MODELS.keys())
@pytest.mark.parametrize("chunk", [37, 149])
def test_losses_read_in_chunks_are_those_of_one_pass(make: Callable[..., Any], chunk: int) -> None:
    model, rows = scaled(make()), token_rows(150)
    with torch.no_grad():
        whole, parts = token_losses(model, rows), long_token_losses(model, rows, chunk=chunk)
    assert is_plain_attention(model)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=2e-5)
    assert parts.mean().item() == pytest.approx(whole.mean().item(), rel=1e-6)


def test_a_sliding_window_goes_through_transformers_own_attention() -> None:
    model, rows = scaled(tiny_mistral(sliding_window=24)), token_rows(150)
    assert not is_plain_attention(model)
    with torch.no_grad():
        torch.testing.assert_close(
            long_token_losses(model, rows, chunk=37), token_losses(model, rows), rtol=1e-5, atol=2e-5
        )
        full = token_losses(scaled(tiny_mistral()), rows)
    assert not torch.allclose(full[:, 60:], token_losses(model, rows)[:, 60:], atol=1e-3)


def test_the_mask_that_other_devices_use_gives_the_same_attention() -> None:
    query = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    key, value = torch.randn(2, 2, 2, 12, 8, generator=torch.Generator().manual_seed(1))
    ours = prefill._past_and_own(query, key, value, past=7, groups=2, scale=0.3)
    masked = torch.nn.functional.scaled_dot_product_attention(
        query,
        prefill.repeat_kv(key, 2),
        prefill.repeat_kv(value, 2),
        attn_mask=prefill.causal_lower_right(5, 12),
        scale=0.3,
    )
    torch.testing.assert_close(ours, masked)


def test_the_cache_is_one_block_that_fills_up_and_can_be_cut_back() -> None:
    model, rows = scaled(tiny_llama()), token_rows(60)
    cache = kv_cache(model, 60)
    with torch.no_grad():
        (*_, last) = chunks(model, rows, cache, chunk=25)
        blocks = [layer._blocks[0].data_ptr() for layer in cache.layers]
        assert [layer.keys.data_ptr() for layer in cache.layers] == blocks
        assert cache.get_seq_length() == 60
        cache.crop(-10)
        torch.testing.assert_close(states_after(model, rows[:, 50:], cache), last)
        with pytest.raises(ValueError, match="made for 60 tokens, found 61"):
            states_after(model, rows[:, :1], cache)
    held = sum(block.numel() * block.element_size() for layer in cache.layers for block in layer._blocks)
    assert held == 2 * kv_bytes(model, 60)  # of two rows


def test_a_model_has_its_own_attention_again_afterwards() -> None:
    model, rows = tiny_llama(), token_rows(20)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        long_token_losses(model, rows, chunk=8)
    assert model.config._attn_implementation == "sdpa"
