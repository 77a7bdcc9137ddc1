"""Rounding stays within its tolerance, and a fault does not."""

import math

import pytest
import torch

from tolerances import relative_error, rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_a_sum_in_another_order_is_within_rounding_and_one_without_a_summand_is_not(
    count: int, dtype: torch.dtype
) -> None:
    summands = torch.rand(16, count, generator=torch.Generator().manual_seed(0), dtype=dtype)
    one_by_one = torch.zeros(16, dtype=dtype)
    for column in summands.T:
        one_by_one += column
    assert relative_error(one_by_one, summands.sum(dim=1)) < rounding(count, dtype)
    assert relative_error(summands[:, 1:].sum(dim=1), summands.sum(dim=1)) > rounding(count, dtype)


def test_a_relative_error_is_of_all_elements_together() -> None:
    assert relative_error([3.0, 4.0], [3.0, 4.0]) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), [3.0, 4.0]) == pytest.approx(0.1)
    assert relative_error(1e-9, 0.0) == math.inf
    assert relative_error(1e-9, 0.0, floor=1.0) == pytest.approx(1e-9)
    assert not relative_error(math.nan, 1.0) < 1
    with pytest.raises(AssertionError, match="are not of one shape"):
        relative_error([1.0], [1.0, 2.0])
