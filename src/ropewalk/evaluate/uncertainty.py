"""How certain a figure is: bootstrap intervals over documents or clusters, and paired tests between methods."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_DOCUMENTS = 3
"""Number of documents below which no interval is given: two documents have only four resamples."""


def mean_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Bias-corrected bootstrap interval (BCa) of the mean, at `CONFIDENCE`; None for too few or not finite values."""
    data = np.asarray(values, np.float64)
    if len(data) < MIN_DOCUMENTS or not np.isfinite(data).all():
        return None
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (data,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(seed)
        ).confidence_interval
    # BCa is not defined for every sample.
    if not np.isfinite([interval.low, interval.high]).all():
        return None
    return float(interval.low), float(interval.high)


def share_interval(share: float, trials: int) -> tuple[float, float]:
    """Wilson's interval, at `CONFIDENCE`, of a share of right answers; wider than it need be where trials may be right
    in part.
    """
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def cluster_interval(strata: Sequence[Sequence[tuple[int, int]]]) -> tuple[float, float] | None:
    """Bootstrap interval, at `CONFIDENCE`, of a share of right answers whose trials come in clusters.

    Whole clusters are resampled within their stratum. Where all trials are right or all are wrong, the interval is
    Wilson's, with the clusters as trials.

    Args:
        strata: (right answers, trials) of each cluster, by stratum.

    Returns:
        (low, high), or None where a stratum has fewer than `MIN_DOCUMENTS` clusters.
    """
    if min(map(len, strata), default=0) < MIN_DOCUMENTS:
        return None
    right, trials = (sum(cluster[place] for clusters in strata for cluster in clusters) for place in (0, 1))
    if right in (0, trials):
        return share_interval(right / trials, sum(map(len, strata)))
    rng = np.random.default_rng(0)
    sums = np.zeros((RESAMPLES, 2))
    for clusters in strata:
        sums += np.asarray(clusters)[rng.integers(len(clusters), size=(RESAMPLES, len(clusters)))].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on the same documents."""

    difference: float
    """Mean of first minus second."""
    low: float | None
    high: float | None
    p_value: float
    """Two-sided, of the permutation test that exchanges the two methods document by document."""


def paired(first: Sequence[float], second: Sequence[float]) -> PairedComparison | None:
    """Compare two methods' values document by document; None for too few documents or values that are not finite.

    With n documents the test is exact up to 2^n = 4,096 exchanges, and its smallest p-value is 2 / 2^n.

    Raises:
        ValueError: the two are not of the same number of documents.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same documents, found {len(first)} and {len(second)}")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(difference) < MIN_DOCUMENTS or not np.isfinite(difference).all():
        return None
    low, high = mean_interval(difference.tolist()) or (None, None)
    p_value = 1.0
    if difference.any():
        # With one sample, scipy's "samples" permutations flip the signs of the differences.
        test = stats.permutation_test(
            (difference,),
            lambda sample, axis: sample.mean(axis),
            permutation_type="samples",
            n_resamples=4096,
            vectorized=True,
            rng=np.random.default_rng(0),
        )
        p_value = float(test.pvalue)
    return PairedComparison(float(difference.mean()), low, high, p_value)
