"""Activation memory, traced in the real forward and backward pass on tensors that have shapes but no storage."""

import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ropewalk.costs.shape import ModelShape, build, not_told, with_layers
from ropewalk.costs.work import Kind, Memory, Work, memory_of
from ropewalk.models.activation_checkpointing import checkpointed
from ropewalk.models.layerwise import layerwise_states
from ropewalk.models.loss import hidden_states, losses_of
from ropewalk.models.prefill import Reading, chunks, kv_cache, reading, ways_in_chunks
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary, rotary_shape
from ropewalk.rope.windows import is_windowed, layer_types

log = logging.getLogger(__name__)

_HEAD = 4096
"""Number of tokens that the head is traced on; it reads all of them in chunks, each in the same memory."""
_EXACT = 2**14
"""Largest number of tokens that is traced directly; in short passes the logits of a chunk may take most."""
_TOKENS = (2**15, 2**16)
"""Numbers of tokens of the two passes from which longer ones are extrapolated linearly."""
_EXACT_SQUARES, _SQUARE_TOKENS = 2**17, (2**16, 2**17)
"""The same where masks or scores grow with the square of the tokens."""


class _Live(TorchDispatchMode):
    """Counts the bytes of live tensors that operations made, and their peak, without ``existing`` ones and views."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


_MASKLESS = "ropewalk_costs"


def _maskless_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Causal attention in the memory of a kernel that needs no mask.

    transformers always makes a mask for fake tensors, where it leaves causal attention of real ones to the kernel.
    """
    size = value.shape[-1]
    # GPU kernels take values of another size than keys; the processor's kernel, which is traced, does not.
    value = F.pad(value, (0, key.shape[-1] - size))
    output, weights = sdpa_attention_forward(module, query, key, value, None, scaling=kwargs.get("scaling"))
    return output[..., :size], weights


AttentionInterface.register(_MASKLESS, _maskless_attention)


def traced_bytes(
    config: Any,
    *,
    kind: Kind,
    tokens: int,
    dtype: str,
    mixed: bool,
    recompute: bool,
    tiled: bool = False,
    chunk: int | None = None,
    generates: bool = False,
    gpu: bool = False,
) -> int:
    """Peak bytes of a pass over one row of ``tokens``, without weights and their gradients; arguments as in `Work`.

    Args:
        tiled: whether long rows are tiled, as when the inputs of layers are offloaded; the inputs count all the same.
        gpu: whether the device is a GPU, which has a kernel for attention with soft caps and sinks.
    """
    checkpointing = "none" if kind == "read" or not recompute else "offload" if tiled else "full"
    trace = partial(
        _traced, config, kind=kind, tokens=tokens, dtype=dtype, mixed=mixed, checkpointing=checkpointing, chunk=chunk,
        gpu=gpu,
    )  # fmt: skip
    if chunk is not None and tokens > chunk:
        with torch.device("meta"):
            ways = ways_in_chunks(build(config))
        for layerwise, way in product((False,) if generates else (True, False), ways):
            try:
                return trace(way=way, layerwise=layerwise)
            except Exception as error:  # A class may fail in any way with a cache that it was not made for.
                log.debug("%s: %s reading is not possible: %s", config.model_type, way.name, error)
    return trace(way=Reading.WHOLE, layerwise=False)


def _traced(
    config: Any,
    *,
    kind: Kind,
    tokens: int,
    dtype: str,
    mixed: bool,
    checkpointing: str,
    chunk: int | None,
    gpu: bool,
    way: Reading,
    layerwise: bool,
) -> int:
    with FakeTensorMode():
        model = build(config, dtype=getattr(torch, dtype))
        _set_attention(model, way, gpu=gpu)
        reading.take_as_known(model, way)
        pairs = rotary_shape(model).rotary_dim // 2
        rotary = find_rotary(extend(model, RopeScaling((1.0,) * pairs, 1, 1)))[1]
        assert isinstance(rotary, RotaryEmbedding)
        if checkpointing != "none":
            # transformers recomputes in training mode only.
            model.train()
        model.requires_grad_(kind in ("adapt", "train"))
        if kind == "adapt":
            # Adapters keep what the gradients of their layers' weights would need.
            for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
                embeddings.requires_grad_(False)
        for parameter in model.parameters():
            # Gradients are counted elsewhere, and would be added to existing ones.
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        if kind == "learn":
            rotary.factors.requires_grad_()
        rows = torch.zeros(1, tokens, dtype=torch.long)
        with (
            checkpointed(model, checkpointing),
            _Live((*model.parameters(), *model.buffers(), rows)) as live,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed),
            torch.set_grad_enabled(kind != "read"),
        ):
            for states in _read(model, rows, None if way is Reading.WHOLE else chunk, layerwise=layerwise):
                targets = rows[:, : min(_HEAD, states.shape[1])]
                loss = losses_of(model, states[:, :_HEAD], targets, "none" if kind == "read" else "mean")
                if kind != "read":
                    loss.backward()
    peak: int = live.peak
    return peak


def _read(model: Any, rows: Tensor, chunk: int | None, *, layerwise: bool) -> Iterator[Tensor]:
    """Hidden states of the row, whole or in chunks."""
    if chunk is None:
        yield hidden_states(model, rows)
    elif layerwise:
        yield from layerwise_states(model, rows, chunk=chunk, on_device=True)
    else:
        yield from chunks(model, rows, kv_cache(model, rows.shape[1]), chunk=chunk)


def _set_attention(model: Any, way: Reading, *, gpu: bool) -> None:
    """Give ``model`` an attention that takes the memory that its own takes on real tensors."""
    attention = model.config._attn_implementation
    uses_flex_attention = attention == "eager" and gpu and model._supports_flex_attn
    # Masks of sliding windows, and on processors those of chunks beside a cache, are made for real tensors too.
    has_masks = any(map(is_windowed, layer_types(model.config))) or (way is Reading.CACHED and not gpu)
    if uses_flex_attention or (attention == "sdpa" and not has_masks):
        model.set_attn_implementation(_MASKLESS)


class ActivationTable:
    """Peak bytes besides weights, gradients and optimizer states; each pass is traced once.

    A model with one layer of each type is traced, and again with one more layer of a type; their difference is what
    each further layer of that type takes. The bytes are linear in the tokens, so two lengths give all others; reading
    in chunks is traced for two and three chunks.

    Args:
        gpu: as in `traced_bytes`.
    """

    def __init__(self, config: Any, *, gpu: bool = False) -> None:
        config = config.get_text_config()
        types = sorted(layer_types(config), key=is_windowed) or ["layer"] * config.num_hidden_layers
        self.gpu = gpu
        self._types = Counter(types)
        # At least two layers, since the peak of a single layer is at another point of the pass.
        self._few = tuple(dict.fromkeys(types)) if len(self._types) > 1 else tuple(types[:2])

        @cache
        def traced(types: tuple[str, ...], **work: Any) -> int:
            try:
                return traced_bytes(with_layers(config, len(types), types=types), gpu=gpu, **work)
            except (AttributeError, KeyError, RuntimeError, TypeError) as error:
                raise not_told(config, error) from None

        self._traced = traced
        with torch.device("meta"):
            eager = build(with_layers(config, 1)).config._attn_implementation == "eager"
        is_square = any(map(is_windowed, types)) or (eager and not gpu)
        self._exact, self._tokens = (_EXACT_SQUARES, _SQUARE_TOKENS) if is_square else (_EXACT, _TOKENS)

    def __call__(
        self, *, tokens: int, offload: bool = False, chunk: int | None = None, generates: bool = False, **work: Any
    ) -> float:
        """Bytes on a device with the activations of ``tokens`` tokens; arguments as in `Work`."""
        if chunk is not None and (tokens > chunk or generates):
            # Linear extrapolation also gives a single chunk and its cache.
            work["chunk"], work["generates"] = min(chunk, tokens), generates
            few, many = 2 * work["chunk"], 3 * work["chunk"]
        else:
            few, many = (tokens, tokens) if tokens <= self._exact else self._tokens
        low, high = (self._of_layers(tokens=count, offload=offload, **work) for count in (few, many))
        return float(high + (high - low) / max(1, many - few) * (tokens - many))

    def _of_layers(self, *, offload: bool, **work: Any) -> float:
        if offload:
            # The other layers' inputs are in the processor's memory.
            return self._traced(self._few[:1], tiled=True, **work)
        few: int = self._traced(self._few, **work)
        further_layers = self._types - Counter(self._few)
        return few + sum(
            count * (self._traced((*self._few, kind), **work) - few) for kind, count in further_layers.items()
        )


def needed(work: Work, shape: ModelShape, table: ActivationTable) -> Memory:
    """Peak memory of one device."""
    # Split weights are gathered in bfloat16, and single ones copied by autocast.
    gathers_half = work.sharded and work.mixed
    activations = table(
        kind=work.kind,
        tokens=work.tokens_per_device,
        dtype="bfloat16" if gathers_half else work.dtype,
        mixed=work.mixed and not gathers_half,
        recompute=work.recompute,
        offload=work.offload,
        chunk=work.chunk,
        generates=work.generates,
    )
    return memory_of(work, shape, activations)
