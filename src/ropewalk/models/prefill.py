"""Reading long inputs in chunks with a KV cache, in the memory of the cache and of one chunk's activations.

A chunk attends to all tokens before it, and to its own causally. In models with no other kind of attention, the two
are computed separately and joined by their log-sum-exps, so no mask of size chunk x input is needed; and the cache is
one block per layer that fills up, so it is never copied. Other attention (sliding windows, soft caps, sinks) is
computed by transformers. A short row shows which of the two a model needs, and whether it can be read in chunks at all.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ropewalk.models.head import TriedOnce, are_same_states, base_model, spread_ids, whole_states
from ropewalk.models.kernels import attention, in_one_dtype, sdpa

log = logging.getLogger(__name__)

_ATTENTION = "ropewalk_prefill"
_HARMLESS = {"position_ids", "use_cache"}
"""Arguments of attention functions that change nothing in causal attention to all earlier tokens."""

_UNLIKE_WHOLE = {"doge", "moshi"}
"""Model types whose states beyond a window differ with and without a cache, which a short row does not show."""


class Reading(Enum):
    """How long inputs of a model are read."""

    JOINED = auto()
    """In chunks, by this module's attention."""
    CACHED = auto()
    """In chunks, by transformers' own attention."""
    WHOLE = auto()
    """In one pass, since continuing from transformers' cache gives other states than reading the whole row."""


class FillingLayer(DynamicLayer):
    """A cache layer for a known number of tokens: one block, the filled part of which holds the keys and values."""

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
        """Append keys and values, and return all so far; raises ValueError beyond the capacity."""
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


class TokenCache(Cache):
    """Replaces the KV cache of a model that cannot continue from one: holds the tokens so far, which are read again."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.ids: Tensor | None = None

    def append(self, ids: Tensor) -> Tensor:
        """All tokens (batch, length), with ``ids`` (batch, new) at their end."""
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        return self.ids

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.ids is None else self.ids.shape[1]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; as in transformers' caches, their number is given as a negative one."""
        if self.ids is not None:
            self.ids = self.ids[:, : self.get_seq_length() + tokens_to_remove]


def kv_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """An empty cache for inputs of ``capacity`` tokens; memory is allocated as it fills."""
    return TokenCache() if reading(model) is Reading.WHOLE else _kv_cache(model, capacity)


def _kv_cache(model: PreTrainedModel, capacity: int) -> Cache:
    # Layers with a sliding window or a recurrent state keep transformers' own.
    cache = DynamicCache(config=model.config)
    cache.layers = [FillingLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def ways_in_chunks(model: PreTrainedModel) -> list[Reading]:
    """The ways to read in chunks that are worth trying, best first; the model may be on meta."""
    if model.config.model_type in _UNLIKE_WHOLE:
        return []
    try:
        is_sliding = any(_kv_cache(model, 1).is_sliding)
    except Exception as error:  # A config may lack what a cache is made from.
        log.debug("%s: a KV cache cannot be made: %s", type(model).__name__, error)
        return []
    # A window is longer than the trial row, and transformers may not pass it to the attention function.
    needs_masks = is_sliding or model.config._attn_implementation != "sdpa"
    return [Reading.CACHED] if needs_masks else [Reading.JOINED, Reading.CACHED]


@TriedOnce
def reading(model: PreTrainedModel) -> Reading:
    """How ``model`` is read in chunks; the first call tries it on a row of 13 tokens."""
    ids = spread_ids(model, 13)[None]
    expected = whole_states(model, ids)[:, 8:]
    for way in ways_in_chunks(model):
        try:
            cache = _kv_cache(model, ids.shape[1])
            _, states = (continued_states(model, ids[:, at : at + 8], cache, way, start=at) for at in (0, 8))
        except Exception as error:  # A class may fail in any way with a cache or attention that it was not made for.
            log.debug("%s: %s reading is not possible: %s", type(model).__name__, way.name, error)
            continue
        if are_same_states(states, expected):
            return way
    log.warning(
        "%s does not continue from its cache in transformers, so each row is read at once, which takes more memory",
        type(model).__name__,
    )
    return Reading.WHOLE


def special_arguments(kwargs: Mapping[str, Any]) -> list[str]:
    """Names of the arguments of an attention function that ask for more than causal attention."""
    return sorted({name for name, value in kwargs.items() if value is not None and value is not False} - _HARMLESS)


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
    """Attention of the last tokens to all keys up to their own, as transformers' attention interface calls it.

    Raises:
        ValueError: the layer asks for another kind of attention.
    """
    special, on_cpu = special_arguments(kwargs), query.device.type == "cpu"
    # The kernel of processors takes no values of another size than keys.
    if special or attention_mask is not None or (on_cpu and key.shape[-1] != value.shape[-1]):
        raise ValueError(f"{type(module).__name__} needs more than causal attention ({', '.join(special) or 'masks'})")
    new, past = query.shape[2], key.shape[2] - query.shape[2]
    if past == 0 or new == 1:
        return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if on_cpu:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = _joined_attention(query, key, value, past=past, scale=scale)
    else:
        output = attention(query, key, value, causal=True, scaling=scaling)
    return output.transpose(1, 2).contiguous(), None


def _joined_attention(query: Tensor, key: Tensor, value: Tensor, *, past: int, scale: float) -> Tensor:
    """Softmax over past and new keys, from the softmax over each and its log-sum-exp: (batch, heads, new, head_dim)."""
    query, key, value = in_one_dtype(query, key, value)
    rows, heads, new, size = query.shape
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # Heads that share keys are treated as one head with more queries, since all of them attend to all past keys.
    folded = query.reshape(rows, key.shape[1], -1, size)
    past_output, past_sum = flash(folded, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scale)
    new_output, new_sum = flash(query, key[:, :, past:], value[:, :, past:], 0.0, True, scale=scale)
    weight = torch.sigmoid(past_sum.reshape(rows, heads, new) - new_sum)[..., None]
    past_output = past_output.reshape(rows, heads, new, size)
    return torch.lerp(new_output.float(), past_output.float(), weight.float()).to(query.dtype)


AttentionInterface.register(_ATTENTION, _attention)


@contextmanager
def _joined_attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Use this module's attention in the model within the block."""
    previous = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def states_after(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    """Hidden states (batch, new, hidden) of ``ids`` (batch, new), which continue the tokens in ``cache``."""
    if isinstance(cache, TokenCache):
        return whole_states(model, cache.append(ids))[:, -ids.shape[1] :]
    return continued_states(model, ids, cache, reading(model), start=cache.get_seq_length())


def continued_states(model: PreTrainedModel, ids: Tensor, cache: Cache, way: Reading, *, start: int) -> Tensor:
    """The same as `states_after`, with the way of reading and the number of tokens in ``cache`` (``start``) given."""
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape)
    # A first chunk and a single token need no mask in any case.
    joined = way is Reading.JOINED and start > 0 and ids.shape[1] > 1
    with _joined_attention_of(model) if joined else nullcontext():
        states: Tensor = base_model(model)(
            input_ids=ids, position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state
    return states


def chunks(model: PreTrainedModel, ids: Tensor, cache: Cache, *, chunk: int) -> Iterator[Tensor]:
    """Hidden states of ``ids`` (batch, length), ``chunk`` tokens at a time, or those of a whole row cut up."""
    if isinstance(cache, TokenCache):
        yield from states_after(model, ids, cache).split(chunk, dim=1)
        return
    for part in ids.split(chunk, dim=1):
        yield states_after(model, part, cache)
