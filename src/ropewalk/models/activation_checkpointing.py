"""Activation checkpointing: activations that the backward pass needs are kept, recomputed, or held in host memory.

With the layers' inputs in host memory, the activations within a single layer take most of the memory of a long row: in
Llama-3-8B 33 times its hidden states, and 14 times with sequence tiling (Arctic Long Sequence Training, arXiv
2506.13996). Sequence tiling lets norms and feed-forward modules, which treat each token on its own, compute a tile of
tokens at a time, in the backward pass too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ropewalk.models.head import RECURRENT, TriedOnce, layers_of
from ropewalk.rope.windows import layer_types

TILE = 8192
"""Number of tokens in a tile, enough for matrix products at full speed."""


@contextmanager
def checkpointed(model: PreTrainedModel, kind: str) -> Iterator[None]:
    """Recompute the activations of each layer in the backward pass, unless ``kind`` is "none".

    transformers does so in training mode only, which the caller sets. If ``kind`` is "offload", the layers' inputs are
    held in host memory and long rows are tiled.
    """
    tiled = token_wise_modules(model) if kind == "offload" else []
    if kind != "none":
        # Reentrant checkpointing would cut the gradient off behind frozen embeddings (LoRA).
        offload = kind == "offload" and torch.accelerator.is_available()
        model.activation_checkpointing_enable({"use_reentrant": False}, offload=offload)
    for module in tiled:
        module.forward = _tiled(module.forward)
    try:
        yield
    finally:
        for module in tiled:
            del module.forward
        if kind != "none":
            model.activation_checkpointing_disable()


@TriedOnce
def token_wise_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Direct submodules of the model's layers that treat each token on its own, found by a trial on a short row.

    The list is empty for a model with recurrent layers, and where the layers cannot be identified.
    """
    if not RECURRENT.isdisjoint(layer_types(model.config)):
        return []
    parameter = next(model.parameters())
    size = model.config.get_text_config().hidden_size
    row = torch.linspace(-1, 1, 4 * size, device=parameter.device, dtype=parameter.dtype).view(1, 4, size)
    return [module for layer in layers_of(model) for module in layer.children() if _is_token_wise(module, row)]


def _is_token_wise(module: nn.Module, row: Tensor) -> bool:
    """Whether ``module`` gives the same for ``row`` (1, length, hidden) as for two parts of it."""
    if "forward" in vars(module):
        return False
    try:
        whole, parts = module(row), [module(part) for part in row.split(2, dim=1)]
        if whole.shape != row.shape or parts[0].shape != row[:, :2].shape:
            return False
    except Exception:  # Attention, for example, needs more arguments than hidden states.
        return False
    if isinstance(whole, FakeTensor):
        return True
    difference = (torch.cat(parts, dim=1) - whole).double().norm()
    return bool(difference <= (1e-3 if row.dtype.itemsize > 2 else 0.1) * whole.double().norm())


def _tiled(forward: Any) -> Any:
    """``forward`` of a module that treats each token on its own, in tiles that the backward pass recomputes."""

    def tiled(*args: Any, **kwargs: Any) -> Any:
        rows = args[0] if args else None
        if kwargs or len(args) > 1 or not isinstance(rows, Tensor) or rows.shape[:-1].numel() <= TILE:
            return forward(*args, **kwargs)
        tiles = rows.split(max(1, TILE // len(rows)), dim=1)
        return torch.cat([checkpoint(forward, tile, use_reentrant=False) for tile in tiles], dim=1)

    return tiled
