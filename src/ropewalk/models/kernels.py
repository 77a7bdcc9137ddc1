"""Which of torch's kernels computes attention, and attention that never copies the keys that query heads share.

torch chooses the kernel. If the inputs suit no other, it falls back to one that computes all scores, in memory that
grows with the square of the length. On GPUs this happens with grouped keys in float32, since only flash attention takes
grouped keys. There, one query head of each group at a time attends to the shared keys.
"""

import logging
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

log = logging.getLogger(__name__)

_LARGE_SCORES = 2**30
"""Size of a layer's scores in bytes from which a warning says that all of them are computed."""


class Kernel(Enum):
    """torch's ways to compute attention."""

    FLASH = "flash attention"
    """On newer GPUs cuDNN's attention may run in its place, which takes the same inputs."""
    EFFICIENT = "memory-efficient attention"
    CPU_FLASH = "flash attention of processors"
    MATH = "all scores at once"

    @property
    def takes_groups(self) -> bool:
        """Whether several query heads can share keys without a copy of them."""
        return self in (Kernel.FLASH, Kernel.CPU_FLASH)


class Mask(Enum):
    """What each query attends to."""

    NONE = "all keys"
    CAUSAL = "the keys up to its own, of as many keys as queries"
    LOWER_RIGHT = "the keys up to its own, where the queries are the last tokens"
    DENSE = "what a tensor says"


@dataclass(frozen=True)
class AttentionInputs:
    """What the choice of a kernel depends on."""

    device: str
    """torch's device type."""
    dtype: torch.dtype
    head_dim: int
    """Size of a head's queries and keys."""
    value_dim: int
    mask: Mask
    capability: tuple[int, int] = (8, 0)
    """CUDA compute capability of the GPU; unused for processors."""
    dropout: float = 0.0
    gradient: bool = False
    has_flash: bool = True
    """Whether torch was built with flash attention for GPUs."""

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool, dropout: float = 0.0
    ) -> "AttentionInputs":
        """The inputs of a call with queries (rows, heads, new, dimension) to keys and values (rows, …, length, …)."""
        on_gpu = query.device.type == "cuda"
        kind = Mask.NONE if mask is None else Mask.DENSE
        # A single last token attends to all keys.
        if causal and mask is None and query.shape[2] > 1:
            kind = Mask.CAUSAL if query.shape[2] == key.shape[2] else Mask.LOWER_RIGHT
        return cls(
            device=query.device.type,
            dtype=query.dtype,
            head_dim=query.shape[-1],
            value_dim=value.shape[-1],
            mask=kind,
            capability=torch.cuda.get_device_capability(query.device) if on_gpu else (0, 0),
            dropout=dropout,
            gradient=torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value)),
            has_flash=not on_gpu or torch.backends.cuda.is_flash_attention_available(),
        )


def kernel(inputs: AttentionInputs) -> Kernel:
    """The kernel that computes attention, by the rules of torch 2.13 (aten's sdp_utils.cpp and sdp_utils_cpp.cpp)."""
    if inputs.device == "cpu":
        return Kernel.CPU_FLASH if _suits_cpu_flash(inputs) else Kernel.MATH
    if inputs.device != "cuda":
        return Kernel.MATH
    if flash_obstacle(inputs) is None:
        return Kernel.FLASH
    return Kernel.EFFICIENT if _suits_efficient(inputs) else Kernel.MATH


def flash_obstacle(inputs: AttentionInputs) -> str | None:
    """Why flash attention of GPUs cannot take ``inputs``; None where it can."""
    major, minor = inputs.capability
    if not inputs.has_flash:
        return "this build of torch has no flash attention"
    if inputs.capability < (8, 0):
        return f"flash attention needs a GPU of compute capability 8.0, found {major}.{minor}"
    if inputs.dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention needs half precision, found {inputs.dtype}"
    if inputs.mask is Mask.DENSE:
        return "flash attention takes no mask but the causal one"
    if inputs.head_dim != inputs.value_dim or inputs.head_dim > 256:
        sizes = " and ".join(map(str, dict.fromkeys((inputs.head_dim, inputs.value_dim))))
        return f"flash attention needs equal head dimensions up to 256, found {sizes}"
    is_small_gpu = (8, 6) <= inputs.capability <= (8, 9) or major == 12
    if (
        inputs.gradient
        and is_small_gpu
        and not (inputs.head_dim <= 192 or (inputs.head_dim > 224 and not inputs.dropout))
    ):
        return f"flash attention has no gradient for head dimension {inputs.head_dim} on this GPU"
    return None


def _suits_efficient(inputs: AttentionInputs) -> bool:
    is_half, is_ampere = inputs.dtype in (torch.float16, torch.bfloat16), inputs.capability >= (8, 0)
    if not (is_half or inputs.dtype is torch.float32) or (inputs.dtype is torch.bfloat16 and not is_ampere):
        return False
    # Tensor cores read 16 bytes at once, so head dimensions must be multiples of as many numbers.
    alignment = 8 if is_half and inputs.capability >= (7, 0) else 4 if is_ampere else 1
    return inputs.head_dim % alignment == 0 and inputs.value_dim % alignment == 0


def _suits_cpu_flash(inputs: AttentionInputs) -> bool:
    is_known = inputs.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return is_known and inputs.head_dim == inputs.value_dim and not inputs.dropout


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """softmax(query · keyᵀ · scaling) · value, of shape (rows, heads, new, value dimension).

    Args:
        query: (rows, heads, new, dimension).
        key, value: (rows, key heads, length, dimension); each is shared by heads / key heads consecutive query heads.
        mask: (1 or rows, 1 or heads, new, length), as torch's scaled_dot_product_attention takes it.
        causal: the queries are the last tokens, and each attends to the keys up to its own; only without ``mask``.
    """
    query, key, value = in_one_dtype(query, key, value)
    inputs = AttentionInputs.of(query, key, value, mask=mask, causal=causal, dropout=dropout)
    chosen, groups = kernel(inputs), query.shape[1] // key.shape[1]
    tell_large_scores(inputs, query, key)
    call = partial(
        F.scaled_dot_product_attention, dropout_p=dropout, is_causal=inputs.mask is Mask.CAUSAL, scale=scaling
    )
    if inputs.mask is Mask.LOWER_RIGHT:
        # The kernels of GPUs apply this mask without its values.
        mask = causal_lower_right(query.shape[2], key.shape[2])
    if groups == 1 or chosen.takes_groups:
        return call(query, key, value, attn_mask=mask, enable_gqa=groups > 1)
    heads, masks = query.unflatten(1, (-1, groups)), [mask] * groups
    if mask is not None and inputs.mask is Mask.DENSE and mask.shape[1] > 1:
        masks = list(mask.unflatten(1, (-1, groups)).unbind(2))
    elif query.shape[2] == 1:
        # Heads that share keys are one head with more queries.
        return call(heads.squeeze(3), key, value, attn_mask=mask).flatten(1, 2)[:, :, None]
    parts = [call(heads[:, :, i], key, value, attn_mask=masks[i]) for i in range(groups)]
    return torch.stack(parts, dim=2).flatten(1, 2)


def in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in autocast's dtype, or else in that of the values.

    Rotating gives float32 queries and keys under autocast, which no kernel takes beside half-precision values.
    """
    device = query.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_cast else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def tell_large_scores(inputs: AttentionInputs, query: Tensor, key: Tensor) -> None:
    """Warn once where a long input's attention takes memory that grows with the square of its length."""
    size = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.dtype.itemsize
    if size < _LARGE_SCORES or kernel(inputs) is not Kernel.MATH:
        return
    if inputs.dropout:
        remedy = "train without attention dropout"
    elif inputs.device == "cpu":
        remedy = "set evaluate.chunk_tokens lower, or take a GPU"
    else:
        remedy = f"set model.dtype={'float16' if inputs.capability < (8, 0) else 'bfloat16'}"
    _warn_once(
        f"attention in {str(inputs.dtype).removeprefix('torch.')} with head dimensions {inputs.head_dim} and "
        f"{inputs.value_dim} takes the memory of all scores, {size / 2**30:.1f} GiB in a layer; {remedy}"
    )


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention function of the same name, which on GPUs repeats grouped keys or computes all scores."""
    biased = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if torch.compiler.is_compiling() or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    is_causal = kwargs.get("is_causal")
    causal = (getattr(module, "is_causal", True) if is_causal is None else is_causal) and query.shape[2] > 1
    # Longer keys without a mask are those of a cache of a fixed size, which transformers cuts off.
    is_cut = causal and attention_mask is None and query.shape[2] != key.shape[2]
    if query.device.type == "cuda" and query.shape[1] > key.shape[1] and not is_cut:
        options = {"dropout": kwargs.get("dropout", 0.0), "scaling": kwargs.get("scaling")}
        output = attention(query, key, value, mask=attention_mask, causal=causal, **options)
        return output.transpose(1, 2).contiguous(), None
    dropout = kwargs.get("dropout", 0.0)
    inputs = AttentionInputs.of(query, key, value, mask=attention_mask, causal=causal, dropout=dropout)
    tell_large_scores(inputs, query, key)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("sdpa", sdpa)
