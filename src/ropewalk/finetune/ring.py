"""torch's ring attention: devices that share a row pass their keys and values around in a ring.

torch cuts rows as `ropewalk.finetune.gathered.Slices` does (head-tail load balancing), and combines the parts of each
query's softmax. Its implementation is experimental, and supports no mask but the causal one.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ropewalk.models.kernels import AttentionInputs, flash_obstacle

torch_ring: Any = None
with suppress(ImportError):
    from torch.distributed.tensor.experimental._context_parallel import _attention as torch_ring

aten = torch.ops.aten
_TOKENS = 2
"""Dimension of (rows, heads, tokens, head dimension) that is cut."""
_STEP = 8
"""Head dimensions must be multiples of this for flash attention on GPUs; on a single device, torch pads them."""


def obstacle(query: Tensor, key: Tensor, value: Tensor, *, masked: bool, dropout: float) -> str | None:
    """Why ring attention is not possible for ``query`` (rows, heads, length, head dimension); None if it is.

    ``masked`` is whether some token does not attend to all tokens before it.
    """
    if not hasattr(torch_ring, "_templated_ring_attention_backward"):
        return f"torch {torch.__version__} has another one than torch 2.13, which it is written for"
    if masked:
        return "it knows no documents within a row and no sliding window"
    if dropout:
        return f"it knows no dropout, found {dropout}"
    if query.device.type == "cpu":
        return None
    if query.shape[-1] % _STEP:
        return f"it knows head dimensions in steps of {_STEP}, found {query.shape[-1]}"
    return flash_obstacle(AttentionInputs.of(query, key, value, mask=None, causal=True))


def ring_attention(query: Tensor, key: Tensor, value: Tensor, *, group: Any, scaling: float | None) -> Tensor:
    """Causal attention of this device's queries to all tokens before them, (rows, heads, length / count, dimension).

    Args:
        key, value: keys and values of this device's tokens, with fewer heads where several query heads share one.
        group: process group of the devices that share the row; None for all processes.
    """
    output: Tensor = _Ring.apply(query, key, value, group or dist.group.WORLD, scaling)  # type: ignore[no-untyped-call]
    return output


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: Any, scaling: float | None) -> Tensor:
        # torch's default gathers the keys and values of all devices at once.
        torch_ring.set_rotate_method("alltoall")
        kernel = partial(attend, scale=scaling)
        out, sums, *rest = torch_ring._templated_ring_attention(
            group, _TOKENS, kernel, query, key, value, is_causal=True
        )
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.group, ctx.scaling, ctx.rest = group, scaling, rest
        assert isinstance(out, Tensor)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        kernel = partial(attend_backward, scale=ctx.scaling, rest=ctx.rest)
        by_query, by_key, by_value, *_ = torch_ring._templated_ring_attention_backward(
            ctx.group, _TOKENS, kernel, gradients[0], "grad_out", query, key, value, out, sums, is_causal=True
        )
        return by_query, by_key, by_value, None, None


def attend(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float | None) -> tuple[Any, ...]:
    """Flash attention to one device's tokens: output, log-sum-exp, and what the backward pass needs besides."""
    on_cpu = query.device.type == "cpu"
    flash = aten._scaled_dot_product_flash_attention_for_cpu if on_cpu else aten._scaled_dot_product_flash_attention
    results: tuple[Any, ...] = flash(query, key, value, 0.0, is_causal, scale=scale)
    return results


def attend_backward(
    *,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    is_causal: bool,
    scale: float | None,
    rest: list[Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend` with respect to query, key and value."""
    if query.device.type == "cpu":
        by_query, by_key, by_value = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, query, key, value, out, logsumexp, 0.0, is_causal, scale=scale
        )
    else:
        no_lengths, no_others, _, _, seed, offset, _ = rest
        longest = query.shape[_TOKENS], key.shape[_TOKENS]
        by_query, by_key, by_value = aten._scaled_dot_product_flash_attention_backward(
            grad_out, query, key, value, out, logsumexp, no_lengths, no_others, *longest, 0.0, is_causal, seed, offset,
            scale=scale,
        )  # fmt: skip
    return by_query, by_key, by_value
