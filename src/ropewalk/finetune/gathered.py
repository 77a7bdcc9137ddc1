"""Attention across devices that share a row, each of which holds a slice of it; registered in transformers as `NAME`.

A device gathers the keys and values of the whole row or, where no mask is needed, passes its own around the ring of
devices (`ropewalk.finetune.ring`). Device i of C holds the i-th of 2C equal pieces of a row and the i-th from its end,
so that all have the same work under a causal mask; the pieces' positions go to the rotary module with them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from ropewalk.finetune.ring import obstacle, ring_attention
from ropewalk.models.kernels import attention, in_one_dtype
from ropewalk.models.prefill import special_arguments
from ropewalk.rope.windows import layer_types

NAME = "ropewalk_gathered"


@dataclass(frozen=True)
class Slices:
    """The pieces of every row that this device holds."""

    index: int
    """Rank of this device among those that share rows."""
    count: int
    """Number of devices that share rows."""
    group: Any = None
    """Process group of these devices; None for all processes."""
    attention: str = "auto"
    """gathered, ring, or auto, which is ring on GPUs where ring attention is possible."""

    @property
    def pieces(self) -> tuple[int, int]:
        """Indices of this device's two pieces among all 2 * count."""
        return self.index, 2 * self.count - 1 - self.index

    def check(self, length: int) -> None:
        """Raise ValueError unless rows of ``length`` tokens can be cut into equal pieces."""
        if length % (2 * self.count):
            raise ValueError(
                f"rows of {length} tokens cannot be shared by {self.count} devices; the length must be a multiple of "
                f"{2 * self.count} (twice parallel.context)"
            )

    def of(self, tensor: Tensor) -> Tensor:
        """This device's slice (rows, length / count) of a tensor (rows, length); raises as `check`."""
        self.check(tensor.shape[1])
        pieces = tensor.chunk(2 * self.count, dim=1)
        return torch.cat([pieces[piece] for piece in self.pieces], dim=1)

    def whole(self, part: Tensor) -> Tensor:
        """The slices (..., length / count, width) of all devices as (..., length, width), in the order of the row."""
        parts = part.new_empty(self.count, *part.shape)
        dist.all_gather_into_tensor(parts.view(-1), part.contiguous().view(-1), group=self.group)
        first, second = parts.chunk(2, dim=-2)
        return torch.cat([*first.unbind(0), *second.flip(0).unbind(0)], dim=-2)

    def summed(self, whole: Tensor) -> Tensor:
        """This device's slice of the sum over devices of their tensors (..., length, width)."""
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
    """What attention needs to know of the rows of a forward pass.

    ``documents`` (rows, length) numbers each token's document, which attention does not leave; None if rows are whole.
    """

    def __init__(self, slices: Slices, documents: Tensor | None = None) -> None:
        self.slices, self.documents = slices, documents
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, piece: int, size: int, window: int | None, *, device: torch.device) -> Tensor:
        """Which tokens each token of ``piece`` attends to: bool (1 or rows, 1, size, (piece + 1) * size).

        Args:
            size: tokens of a piece.
            window: tokens of a sliding window; None for none.
        """
        key = piece, size, window
        if key not in self._masks:
            end = (piece + 1) * size
            queries, keys = torch.arange(end - size, end, device=device)[:, None], torch.arange(end, device=device)
            mask = (keys <= queries)[None, None]
            if window is not None:
                mask = mask & (queries - keys < window)
            if self.documents is not None:
                documents = self.documents[:, :end]
                mask = mask & (documents[:, None, end - size :, None] == documents[:, None, None, :])
            self._masks[key] = mask
        return self._masks[key]


def documents_of(positions: Tensor) -> Tensor:
    """(rows, length) numbers of the documents in rows whose ``positions`` start at 0 in each document."""
    return (positions == 0).cumsum(dim=1)


def check_layers(model: PreTrainedModel) -> None:
    """Raise ValueError if ``model`` has layers that are not attention, or attend in another way than its mask says."""
    if other := sorted({*layer_types(model.config)} - {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"{type(model).__name__} has layers of the type {other[0]}, which devices that share a row do not compute; "
            "set parallel.context=1"
        )


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for this device's queries (rows, heads, length / count, head dimension).

    Raises:
        ValueError: the model does not pass ``sliced`` to its attention, passes what is not computed here, or a ring was
            asked for and is not possible.
    """
    if special := special_arguments(kwargs):
        raise ValueError(
            f"{type(module).__name__} passes {special[0]} to its attention, which devices that share a row do not "
            "compute; set parallel.context=1"
        )
    if sliced is None:
        raise ValueError(
            f"{type(module).__name__} does not hand on what devices that share a row need; set parallel.context=1"
        )
    slices, plain = sliced.slices, sliced.documents is None and sliding_window is None
    on_gpu = query.device.type != "cpu"
    query, key, value = in_one_dtype(query, key, value)
    if slices.attention != "gathered":
        reason = obstacle(query, key, value, masked=not plain, dropout=dropout)
        if reason is None and (slices.attention == "ring" or on_gpu):
            output = ring_attention(query, key, value, group=slices.group, scaling=scaling)
            return output.transpose(1, 2).contiguous(), None
        if slices.attention == "ring":
            raise ValueError(f"parallel.attention=ring cannot be used here: {reason}; take parallel.attention=auto")
    if key.shape == value.shape:
        key, value = _Whole.apply(torch.stack((key, value)), slices).unbind(0)  # type: ignore[no-untyped-call]
    else:  # as in multi-head latent attention
        key, value = (_Whole.apply(part, slices) for part in (key, value))  # type: ignore[no-untyped-call]
    size = query.shape[2] // 2
    outputs = []
    for piece, part in zip(slices.pieces, query.split(size, dim=2), strict=True):
        end = (piece + 1) * size
        # The kernels of GPUs apply a causal mask that is aligned to the last query without its values.
        is_maskless = plain and on_gpu
        mask = None if is_maskless else sliced.mask(piece, size, sliding_window, device=query.device)
        outputs.append(
            attention(
                part,
                key[:, :, :end],
                value[:, :, :end],
                mask=mask,
                causal=is_maskless,
                dropout=dropout,
                scaling=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, gathered_attention)
