"""Long inputs in chunks with a KV cache: memory is the cache and one chunk's activations, and no mask of both.

A chunk attends to what came before it, all of which it may see, and to itself, causally. Where a model's attention is
nothing but that, the two are computed apart and joined by their log-sum-exps, so that no mask of chunk by input is
made, and the cache is one block per layer that fills up, so that it is never copied. Any other attention (sliding
windows, soft caps) goes through transformers' own path and cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

_ATTENTION = "ropewalk_prefill"


class FillingLayer(DynamicLayer):
    """A cache layer for a known number of tokens: one block, of which keys and values are the part that is filled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._blocks = tuple(
            states.new_empty(*states.shape[:-2], self.capacity, states.shape[-1])
            for states in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(keys, values) so far, the new ones included; raises ValueError beyond the capacity."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the KV cache was made for {self.capacity} tokens, found {end}")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._blocks
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values


def is_plain_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens before and nothing else, as far as the config says."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    special = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping", "use_alibi", "alibi")
    return (
        kinds == {"full_attention"}
        and not any(getattr(config, name, None) for name in special)
        and config.model_type != "gpt_oss"
        and config._attn_implementation in ("sdpa", _ATTENTION)
    )


def kv_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """An empty cache for inputs of ``capacity`` tokens; memory is taken as it fills."""
    if not is_plain_attention(model):
        return DynamicCache(config=model.config)
    return Cache(layers=[FillingLayer(capacity) for _ in range(model.config.get_text_config().num_hidden_layers)])


def kv_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes that the keys and values of ``tokens`` tokens take."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * tokens)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: the last queries of ``key``, each seeing all keys up to its own."""
    new, past = query.shape[2], key.shape[2] - query.shape[2]
    if past == 0 or new == 1:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        output = _past_and_own(query, key, value, past=past, groups=groups, scale=scale)
    else:
        # Its flash and memory-efficient kernels know this mask without making it.
        output = torch.nn.functional.scaled_dot_product_attention(
            query,
            repeat_kv(key, groups),
            repeat_kv(value, groups),
            attn_mask=causal_lower_right(new, key.shape[2]),
            scale=scale,
        )
    return output.transpose(1, 2).contiguous(), None


def _past_and_own(query: Tensor, key: Tensor, value: Tensor, *, past: int, groups: int, scale: float) -> Tensor:
    """(rows, heads, new, head_dim): softmax over two sets of keys from the softmax over each and its log-sum-exp."""
    rows, heads, new, size = query.shape
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # Heads that share keys are further queries of one head here, since all of them see all of the past.
    folded = query.reshape(rows, heads // groups, groups * new, size)
    seen, seen_sum = flash(folded, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scale)
    own_keys, own_values = (repeat_kv(states[:, :, past:], groups) for states in (key, value))
    own, own_sum = flash(query, own_keys, own_values, 0.0, True, scale=scale)
    share = torch.sigmoid(seen_sum.reshape(rows, heads, new) - own_sum)[..., None]
    return torch.lerp(own.float(), seen.reshape(rows, heads, new, size).float(), share.float()).to(query.dtype)


AttentionInterface.register(_ATTENTION, _attention)


@contextmanager
def _prefill_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model with the attention of this module, and its own afterwards."""
    config: Any = model.config
    if not is_plain_attention(model):
        yield
        return
    before = config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def states_after(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    """(rows, new, hidden) states of the body for ``ids`` (rows, new), which go on from what ``cache`` holds."""
    start = cache.get_seq_length()
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    # A first chunk and a single token need no mask anyway.
    with _prefill_attention(model) if start and ids.shape[1] > 1 else nullcontext():
        states: Tensor = model.base_model(
            input_ids=ids, position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state
    return states


def chunks(model: PreTrainedModel, ids: Tensor, cache: Cache, *, chunk: int) -> Iterator[Tensor]:
    """The states of ``ids`` (rows, length), ``chunk`` tokens at a time: (rows, up to chunk, hidden)."""
    for part in ids.split(chunk, dim=1):
        yield states_after(model, part, cache)
