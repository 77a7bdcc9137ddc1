"""Activation checkpointing: activations that the backward pass needs are kept, recomputed, or held in host memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import PreTrainedModel


@contextmanager
def checkpointed(model: PreTrainedModel, kind: str) -> Iterator[None]:
    """Recompute the activations of each layer in the backward pass, unless ``kind`` is "none".

    transformers does so in training mode only, which the caller sets.
    """
    if kind != "none":
        # Reentrant checkpointing would cut the gradient off behind frozen embeddings (LoRA).
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if kind != "none":
            model.gradient_checkpointing_disable()


def offloaded(kind: str, device: torch.device) -> AbstractContextManager[object]:
    """Hold the tensors that the forward pass saves in host memory, if ``kind`` is "offload"."""
    if kind != "offload":
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
