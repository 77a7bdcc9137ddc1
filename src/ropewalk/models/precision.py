"""Which precision a training computes in: bf16 only where the processor has it natively."""

from typing import Any

import torch


def native_bf16() -> bool:
    """Whether matrix products in bf16 are at least as fast as in float32 here (elsewhere they are emulated)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def resolve_precision(precision: str) -> Any:
    """Lightning's name for ``precision``, with ``auto`` decided by the processor."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if native_bf16() else "32-true"
