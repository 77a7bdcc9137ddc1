"""Attention of devices that share a row: each holds a slice of it and gathers the keys and values of the whole, or
hands its own on around the ring of them (`ropewalk.finetune.ring`) where no masks are needed.

Device i of C holds the i-th of 2C equal pieces of a row and the i-th from its end, so that under a causal mask all have
the same work. Positions travel with the pieces (the rotary module sees them), so n_hat and documents keep their
meaning. Gathering works on any device and backend. transformers calls it by its name, `NAME`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from ropewalk.finetune.ring import obstacle, ring_attention

NAME = "ropewalk_gathered"


@dataclass(frozen=True)
class Slices:
    """Which pieces of every row this device holds."""

    index: int
    """Of this device among those that share rows."""
    count: int
    """Of those devices."""
    group: Any = None
    """Their process group; None for all processes."""
    attention: str = "auto"
    """gathered, ring, or auto: ring on GPUs where it can serve."""

    @property
    def pieces(self) -> tuple[int, int]:
        """Numbers of this device's pieces, of 2 * count."""
        return self.index, 2 * self.count - 1 - self.index

    def check(self, length: int) -> None:
        """Raise ValueError unless rows of ``length`` tokens can be cut into equal pieces."""
        if length % (2 * self.count):
            raise ValueError(
                f"rows of {length} tokens cannot be shared by {self.count} devices; the length must be a multiple of "
                f"{2 * self.count} (twice parallel.context)"
            )

    def of(self, tensor: Tensor) -> Tensor:
        """This device's part of (rows, length): (rows, length / count).

        Raises:
            ValueError: the length does not divide.
        """
        self.check(tensor.shape[1])
        pieces = tensor.chunk(2 * self.count, dim=1)
        return torch.cat([pieces[piece] for piece in self.pieces], dim=1)

    def whole(self, part: Tensor) -> Tensor:
        """(..., length / count, width) of every device as (..., length, width), in the order of the row."""
        parts = part.new_empty(self.count, *part.shape)
        dist.all_gather_into_tensor(parts.view(-1), part.contiguous().view(-1), group=self.group)
        first, second = parts.chunk(2, dim=-2)
        return torch.cat([*first.unbind(0), *second.flip(0).unbind(0)], dim=-2)

    def summed(self, whole: Tensor) -> Tensor:
        """The sum over all devices of (..., length, width), of which each gets its part."""
        pieces = whole.chunk(2 * self.count, dim=-2)
        parts = torch.stack([torch.cat((pieces[i], pieces[2 * self.count - 1 - i]), dim=-2) for i in range(self.count)])
        part = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(part.view(-1), parts.view(-1), group=self.group)
        return part


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, slices: Slices) -> Tensor:
        ctx.slices = slices
        return slices.whole(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.slices.summed(gradients[0]), None


class SlicedRows:
    """The rows of one forward pass as attention sees them.

    Args:
        documents: (rows, length) number of the document that each token of the whole rows is of, or None where every
            row is of one; attention does not leave a document.
    """

    def __init__(self, slices: Slices, documents: Tensor | None = None) -> None:
        self.slices, self.documents = slices, documents
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, piece: int, size: int, window: int | None) -> Tensor:
        """(1 or rows, 1, size, (piece + 1) * size) whether a token of the piece reads one up to its end."""
        key = piece, size, window
        if key not in self._masks:
            device = None if self.documents is None else self.documents.device
            end = (piece + 1) * size
            reads, read = torch.arange(end - size, end, device=device)[:, None], torch.arange(end, device=device)
            mask = (read <= reads)[None, None]
            if window is not None:
                mask = mask & (reads - read < window)
            if self.documents is not None:
                own = self.documents[:, :end]
                mask = mask & (own[:, None, end - size :, None] == own[:, None, None, :])
            self._masks[key] = mask
        return self._masks[key]


def documents_of(positions: Tensor) -> Tensor:
    """(rows, length) document numbers of rows whose ``positions`` begin again at 0 with each document."""
    return (positions == 0).cumsum(dim=1)


def gathered_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliced: SlicedRows | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for this device's queries (rows, heads, length / count, head dimension).

    Raises:
        ValueError: the model does not hand ``sliced`` on to its attention, or a ring was asked for and cannot serve.
    """
    if sliced is None:
        raise ValueError(
            f"{type(module).__name__} does not hand on what devices that share a row need; set parallel.context=1"
        )
    slices, plain = sliced.slices, sliced.documents is None and sliding_window is None
    kind = query.device.type
    if slices.attention != "gathered":
        # As sdpa does by itself.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        query, key, value = (part.to(dtype) for part in (query, key, value))
        against = obstacle(query, masked=not plain, dropout=dropout)
        if against is None and (slices.attention == "ring" or kind == "cuda"):
            output = ring_attention(query, key, value, group=slices.group, scaling=scaling)
            return output.transpose(1, 2).contiguous(), None
        if slices.attention == "ring":
            raise ValueError(f"parallel.attention=ring cannot be used here: {against}; take parallel.attention=auto")
    key, value = _Whole.apply(torch.stack((key, value)), slices).unbind(0)  # type: ignore[no-untyped-call]
    groups = query.shape[1] // key.shape[1]
    size = query.shape[2] // 2
    fast = plain and kind == "cuda"
    if not fast:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    outputs = []
    for piece, part in zip(slices.pieces, query.split(size, dim=2), strict=True):
        end = (piece + 1) * size
        if fast:
            # Flash attention knows a causal mask that is aligned to the last query.
            mask: Any = causal_lower_right(size, end)
        else:
            mask = sliced.mask(piece, size, sliding_window).to(query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                part,
                key[:, :, :end],
                value[:, :, :end],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=fast and groups > 1,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, gathered_attention)
