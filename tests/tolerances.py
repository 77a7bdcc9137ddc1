"""How far two computations of the same quantity may differ by rounding alone, from their arithmetic.

Processors and numbers of threads add the same summands in different orders and with different fused operations. A
tolerance that was read off one of them fails on another, so tests take theirs from the number of summands and dtype:

    assert relative_error(actual, expected) < rounding(hidden_size + length, torch.float32)
"""

import math
from typing import Any

import torch
from torch import Tensor

_MARGIN = 16
"""Standard deviations of the random walk that rounding errors are taken for. Four would be enough for a plain sum; the
rest is for what multiplies errors on the way through a model: a softmax, a norm, a residual stream."""


def relative_error(actual: Any, expected: Any, *, floor: float = 0.0) -> float:
    """Euclidean norm of ``actual - expected`` over that of ``expected``, in float64; NaN where either holds a NaN.

    It is a norm of all elements together because an element near zero is a difference of much larger summands, whose
    rounding it keeps: by itself it has no relative accuracy.

    Args:
        actual, expected: tensors, arrays, numbers or sequences of numbers, of the same shape.
        floor: norm that ``expected`` is taken to have at least. For a gradient whose summands cancel (mathematically
            that of a key's bias is 0) this is a share of the norm of all gradients.

    Raises:
        AssertionError: the shapes differ.
    """
    left, right = (torch.as_tensor(value).detach().to("cpu", torch.float64) for value in (actual, expected))
    assert left.shape == right.shape, f"{tuple(left.shape)} and {tuple(right.shape)} are not of one shape"
    difference, norm = _norm(left - right), max(_norm(right), floor)
    if difference == 0:
        return 0.0
    return difference / norm if norm else math.inf


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def rounding(count: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error that rounding may leave in a result of ``count`` roundings, one after the other.

    Each rounding is off by at most half of eps, up or down, so that after ``count`` of them the error is that of a
    random walk, sqrt(count) * eps / 2 (Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis"), here times a margin of 16.

    Args:
        count: summands on the longest way from the inputs to the result; for a chain of matrix products the sum of
            their inner dimensions.
        dtype: the narrowest that is computed in.
    """
    return _MARGIN * math.sqrt(count) * torch.finfo(dtype).eps / 2
