"""The precision of a training: bf16 only where the hardware computes in it natively."""

from typing import Any

import torch


def native_bf16() -> bool:
    """Whether this machine multiplies matrices in bf16 natively, and not by a slow emulation."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def resolve_precision(precision: str) -> Any:
    """Lightning's name for ``precision``, with "auto" decided by the hardware."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if native_bf16() else "32-true"
