"""Where bfloat16 is fast: on hardware that computes in it instead of emulating it."""

import time
from functools import cache
from typing import Any

import torch

_SIZE, _REPEATS = 512, 5
"""Rows and columns of the matrices that are timed, and how often."""
_MIN_SPEEDUP = 1.3
"""Processors with instructions for bfloat16 are twice to eight times as fast in it, others many times slower."""


@cache
def is_bfloat16_fast() -> bool:
    """Whether this machine multiplies matrices faster in bfloat16 than in float32; a processor is timed once.

    The processor's instruction set is not enough to decide, since libraries may be told not to use it
    (``ONEDNN_MAX_CPU_ISA``).
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    return _seconds(torch.float32) > _MIN_SPEEDUP * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest of a few matrix products."""
    matrix, times = torch.ones(_SIZE, _SIZE, dtype=dtype), []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)


def check_computes_in(dtype: str, *, key: str, device: str) -> None:
    """Raise ValueError where ``key`` asks for bfloat16 on a GPU that only emulates it."""
    is_gpu = torch.device(device).type == "cuda"
    if dtype.startswith(("bfloat16", "bf16")) and is_gpu and not is_bfloat16_fast():
        raise ValueError(
            f"{key}={dtype}: this GPU does not compute in bfloat16; take model.dtype=float16 and "
            "finetune.precision=16-mixed"
        )


def resolve_precision(precision: str) -> Any:
    """Lightning's name for ``precision``, with "auto" decided by the hardware; raises as `check_computes_in`."""
    if precision != "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        check_computes_in(precision, key="finetune.precision", device=device)
        return precision
    return "bf16-mixed" if is_bfloat16_fast() else "32-true"
