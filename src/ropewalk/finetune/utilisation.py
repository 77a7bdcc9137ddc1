"""Model FLOPs utilisation: what a step must compute, as a fraction of what the devices could in the same time."""

import time
from functools import cache
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn
from transformers import PreTrainedModel


def flops_per_token(model: PreTrainedModel, *, length: int) -> float:
    """FLOPs of the forward and backward pass for one token of a row of ``length`` (PaLM, arXiv 2204.02311, App. B).

    The forward pass takes two FLOPs for each weight of a matrix, the backward pass four, or two for a matrix that is
    not trained. Causal attention is over half of the row on average. Recomputed activations do not count.
    """
    matrices = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            matrices += weight.numel() * (6 if weight.requires_grad else 4)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Scores and outputs are two matrix products forward and four backward, over length / 2 keys.
    attention = 6 * 2 * heads * head_dim * config.num_hidden_layers * length / 2
    return float(matrices + attention)


@cache
def _measured_flops(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of the fastest of a few products of two square matrices."""
    size = 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        (a @ b).flatten()[0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_flops(precision: str, *, device: torch.device, tflops: float | None) -> float:
    """FLOPs a second of one device: ``tflops`` if given, else the published peak of the GPU, else measured."""
    if tflops is not None:
        return tflops * 1e12
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16 if "16" in precision else torch.float32
    if device.type == "cuda":
        try:
            if known := get_available_flops(device, dtype):
                return float(known)
        except ValueError:
            pass  # A GPU that Lightning does not know.
    return _measured_flops(str(device), dtype)
