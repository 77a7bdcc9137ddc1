"""Long inputs in chunks: the states and losses of one pass, for every kind of attention and any scaling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import cross_entropy
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.models.llama.modeling_llama import LlamaAttention

from ropewalk.models import prefill
from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.loss import long_token_losses, token_losses
from ropewalk.models.prefill import Reading, chunks, kv_cache, reading, states_after
from ropewalk.rope import RopeScaling, extend, rotary_shape
from tiny_models import ROPE_MODELS, tiny_llama, tiny_mistral, tiny_of, tiny_rounding, token_rows
from tolerances import relative_error, rounding

pytestmark = pytest.mark.numeric


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
    assert reading(model) is Reading.JOINED
    assert relative_error(parts, whole) < tiny_rounding(150)
    assert relative_error(parts.mean(), whole.mean()) < tiny_rounding(150)


def test_a_sliding_window_goes_through_transformers_own_attention() -> None:
    model, rows = scaled(tiny_mistral(sliding_window=24)), token_rows(150)
    assert reading(model) is Reading.CACHED
    with torch.no_grad():
        losses = token_losses(model, rows)
        assert relative_error(long_token_losses(model, rows, chunk=37), losses) < tiny_rounding(150)
        full = token_losses(scaled(tiny_mistral()), rows)
    assert relative_error(full[:, 60:], losses[:, 60:]) > 100 * tiny_rounding(150)


MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
OTHER_KINDS: dict[str, tuple[Reading, dict[str, Any]]] = {
    # Recurrent layers beside attention.
    "bamba": (Reading.JOINED, {**MAMBA, "attn_layer_indices": [1]}),
    # Sliding windows beside full attention.
    "gemma3_text": (Reading.CACHED, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}),
    # Soft caps, and sinks.
    "gemma2": (Reading.CACHED, {"attn_logit_softcapping": 2.0, "sliding_window": 24}),
    "gpt_oss": (Reading.CACHED, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
    # Values that are smaller than keys.
    "deepseek_v3": (
        Reading.CACHED,
        {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "head_dim": 8}
        | {
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
    ),
    # A cache of the class's own, and a recurrence that does not continue in chunks.
    "minimax": (Reading.WHOLE, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "recurrent_gemma": (Reading.WHOLE, {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 24}),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@torch.no_grad()
def test_every_kind_of_layer_is_read_in_chunks_as_at_once(kind: str) -> None:
    way, sizes = OTHER_KINDS[kind]
    model, ids = tiny_of(kind, **sizes), token_rows(60, rows=1)[0].tolist()
    assert reading(model) is way
    rows = token_rows(90)
    logits = model(rows).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(2, -1)
    assert relative_error(long_token_losses(model, rows, chunk=37), expected) < tiny_rounding(90)
    prompt, continuation = ReadPrompt(model, ids, room=5, chunk=25), list(ids)
    for _ in range(5):
        continuation.append(int(model(torch.tensor([continuation])).logits[0, -1].argmax()))
    # Twice, since every continuation starts from the same prompt.
    assert list(prompt.greedy(5)) == list(prompt.greedy(5)) == continuation[60:]
    logits = model(torch.tensor([continuation])).logits[0, 59:-1].log_softmax(-1)
    likelihood = logits.gather(-1, torch.tensor(continuation[60:])[:, None]).sum()
    assert relative_error(torch.tensor(prompt.log_likelihood(continuation[60:])), likelihood) < tiny_rounding(65)


class _Hotter(LlamaAttention):
    """Attention that doubles its queries where it continues from a cache."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        continues = cache is not None and cache.get_seq_length() > 0
        with torch.no_grad():
            self.q_proj.weight *= 2 if continues else 1
            result = super().forward(hidden_states, *args, cache=cache, **kwargs)
            self.q_proj.weight /= 2 if continues else 1
        return result


def test_a_class_that_reads_chunks_otherwise_than_rows_is_read_at_once(caplog: pytest.LogCaptureFixture) -> None:
    model, rows = tiny_llama(), token_rows(60)
    for layer in model.model.layers:
        layer.self_attn.__class__ = _Hotter
    with torch.no_grad():
        whole = token_losses(model, rows)
        assert relative_error(long_token_losses(model, rows, chunk=8), whole) < tiny_rounding(60)
    assert reading(model) is Reading.WHOLE
    assert [record.message.startswith("LlamaForCausalLM does not continue") for record in caplog.records] == [True]


def test_the_mask_that_other_devices_use_gives_the_same_attention() -> None:
    query = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    key, value = torch.randn(2, 2, 2, 12, 8, generator=torch.Generator().manual_seed(1))
    ours = prefill._joined_attention(query, key, value, past=7, scale=0.3)
    masked = torch.nn.functional.scaled_dot_product_attention(
        query,
        repeat_kv(key, 2),
        repeat_kv(value, 2),
        attn_mask=causal_lower_right(5, 12),
        scale=0.3,
    )
    assert relative_error(ours, masked) < rounding(8 + 12)


def test_the_cache_is_one_block_that_fills_up_and_can_be_cut_back() -> None:
    model, rows = scaled(tiny_llama()), token_rows(60)
    cache = kv_cache(model, 60)
    with torch.no_grad():
        (*_, last) = chunks(model, rows, cache, chunk=25)
        blocks = [layer._blocks[0].data_ptr() for layer in cache.layers]
        assert [layer.keys.data_ptr() for layer in cache.layers] == blocks
        assert cache.get_seq_length() == 60
        cache.crop(-10)
        assert relative_error(states_after(model, rows[:, 50:], cache), last) < tiny_rounding(60)
        with pytest.raises(ValueError, match="made for 60 tokens, found 61"):
            states_after(model, rows[:, :1], cache)
    held = sum(block.numel() * block.element_size() for layer in cache.layers for block in layer._blocks)
    # Keys and values of two rows, four bytes a number.
    config = model.config
    assert held == 2 * 2 * 4 * 60 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def test_a_model_has_its_own_attention_again_afterwards() -> None:
    model, rows = tiny_llama(), token_rows(20)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        long_token_losses(model, rows, chunk=8)
    assert model.config._attn_implementation == "sdpa"
