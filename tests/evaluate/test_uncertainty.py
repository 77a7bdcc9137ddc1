"""Intervals that hold the truth as often as they say, and p-values against scipy's Wilcoxon and Student tests."""

import math

import numpy as np
import pytest
from scipy import stats

from ropewalk.evaluate.uncertainty import cluster_interval, mean_interval, paired, share_interval


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(200):
        interval = mean_interval(rng.gamma(2.0, 1.0, 30).tolist(), seed=draw)
        assert interval is not None
        held += interval[0] <= 2.0 <= interval[1]
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_interval_of_a_share_holds_the_truth_whether_or_not_trials_of_a_cluster_agree(spread: float) -> None:
    """Shares of clusters vary about one half, as their trials' log odds do with this standard deviation."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(300):
        shares = 1 / (1 + np.exp(-spread * rng.standard_normal(20)))
        right = rng.binomial(5, shares).tolist()
        interval = cluster_interval([[(count, 5) for count in right[:10]], [(count, 5) for count in right[10:]]])
        assert interval is not None
        held += interval[0] <= 0.5 <= interval[1]
        low, high = share_interval(sum(right) / 100, 100)
        naive += low <= 0.5 <= high
    assert 0.87 <= held / 300 <= 0.99
    assert naive / 300 < 0.8 or spread == 0


def test_where_all_trials_agree_each_cluster_counts_once() -> None:
    assert cluster_interval([[(5, 5)] * 10, [(2, 2)] * 6]) == share_interval(1.0, 16)
    assert cluster_interval([[(0, 5)] * 10]) == share_interval(0.0, 10)
    assert cluster_interval([[(3, 5)] * 10, [(2, 2)] * 2]) is None
    assert cluster_interval([]) is None


def test_nothing_is_said_of_two_documents_or_of_nan() -> None:
    assert mean_interval([1.0, 2.0]) is None
    assert mean_interval([1.0, 2.0, math.nan]) is None
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert paired([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]) is None
    assert paired([1.0, 2.0], [1.0, 3.0]) is None
    with pytest.raises(ValueError, match="same documents, found 3 and 2"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])


def test_p_values_agree_with_students_test_on_normal_differences() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.05, 0.3):
        first, second = rng.normal(3, 1, 30), rng.normal(0, 0.2, 30)
        comparison = paired((first + second + shift).tolist(), first.tolist())
        assert comparison is not None
        assert comparison.difference == pytest.approx((second + shift).mean())
        assert comparison.p_value == pytest.approx(stats.ttest_1samp(second + shift, 0).pvalue, abs=0.02)


def test_few_documents_are_tested_exactly() -> None:
    comparison = paired([1.0, 2.0, 3.0, 4.0, 5.0], [0.9, 1.7, 2.9, 3.6, 4.3])
    assert comparison is not None
    assert comparison.p_value == pytest.approx(2 / 2**5)
    same = paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)
