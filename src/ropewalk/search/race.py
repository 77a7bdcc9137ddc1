"""Racing: a candidate is given up once what both it and the best have read says that it is worse."""

from collections.abc import Mapping

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats import wilcoxon

_LEAST_PAIRS = 8
"""Blocks that a candidate is read on before it may be stopped."""


class RacePruner(BasePruner):
    """Wilcoxon's signed-rank test of block losses in pairs with those of the best trial so far.

    optuna.pruners.WilcoxonPruner with another guard: it compares the mean of what the candidate has read with the
    best trial's mean over everything, so that nothing is stopped while easy documents come first. Here both means
    are over the blocks that both have read.
    """

    def __init__(self, *, p_value: float) -> None:
        self._p_value = p_value

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        try:
            best = study.best_trial
        except ValueError:
            return False
        behind = _behind(trial.intermediate_values, best)
        if len(behind) < _LEAST_PAIRS or behind.mean() <= 0:
            return False
        return bool(wilcoxon(behind, alternative="greater", zero_method="zsplit").pvalue < self._p_value)


def estimated_loss(blocks: Mapping[int, float], best: FrozenTrial) -> float:
    """Of a candidate that was stopped early: the best trial's, and how far behind it the candidate was; nats."""
    return float(best.values[0] + _behind(blocks, best).mean())


def _behind(blocks: Mapping[int, float], best: FrozenTrial) -> np.ndarray:
    """Block losses minus those of the best trial, where both have read the block."""
    theirs = best.intermediate_values
    return np.array([value - theirs[block] for block, value in blocks.items() if block in theirs])
