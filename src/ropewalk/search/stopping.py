"""When to stop: a candidate that loses the race against the best, and a search that has spent its budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import wilcoxon

TOKENS = "forward_tokens"
"""User attribute of a trial: the tokens that it read."""
_MIN_PAIRS = 8
"""Blocks that a candidate is read on before it may be stopped."""


class RacePruner(BasePruner):
    """Wilcoxon signed-rank test between the block losses of a trial and those of the best trial so far.

    optuna.pruners.WilcoxonPruner compares the trial's mean over the blocks read so far with the best trial's mean over
    all blocks, so that it stops nothing while easy documents come first. Here, both means are over the blocks that both
    trials have read.
    """

    def __init__(self, *, p_value: float) -> None:
        self._p_value = p_value

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        try:
            best = study.best_trial
        except ValueError:
            return False
        behind = _behind(trial.intermediate_values, best)
        if len(behind) < _MIN_PAIRS or behind.mean() <= 0:
            return False
        return bool(wilcoxon(behind, alternative="greater", zero_method="zsplit").pvalue < self._p_value)


def estimated_loss(blocks: Mapping[int, float], best: FrozenTrial) -> float:
    """Loss in nats of a candidate that was stopped early: the best trial's, plus how far the candidate is behind."""
    return float(best.values[0] + _behind(blocks, best).mean())


def _behind(blocks: Mapping[int, float], best: FrozenTrial) -> np.ndarray:
    """Block losses minus those of the best trial, where both have read the block."""
    best_blocks = best.intermediate_values
    return np.array([value - best_blocks[block] for block, value in blocks.items() if block in best_blocks])


def tokens_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(TOKENS, 0))


@dataclass(frozen=True)
class Budget:
    """How far a search may go; without ``tokens`` and ``patience``, to its last trial."""

    tokens: int | None
    """Tokens that may be read."""
    patience: int | None
    """Trials without a gain after which a search ends."""
    min_delta: float
    """Smallest gain that counts, in nats."""

    def check(self, *, reads: int, steps: int, tokens: int) -> None:
        """Raise ValueError unless the budget covers the ``tokens`` of what comes before the first trial."""
        if self.tokens is not None and self.tokens < tokens:
            raise ValueError(
                f"search.budget_tokens must cover what comes before the first trial ({reads} points that are read "
                f"whole and {steps} gradient steps), {tokens:,} tokens, found {self.tokens:,}; raise it or lower "
                "search.gradient_steps"
            )

    def end(self, spent: int, trials: Sequence[FrozenTrial]) -> int | None:
        """How many of the first ``trials`` are enough after ``spent`` tokens before them; None where all are needed."""
        best, last_gain = math.inf, 0
        if self._is_used_up(spent):
            return 0
        for count, trial in enumerate(trials, start=1):
            spent += tokens_of(trial)
            if trial.state == TrialState.COMPLETE and trial.values[0] < best - self.min_delta:
                best, last_gain = trial.values[0], count
            if self._is_used_up(spent) or (self.patience is not None and count - last_gain >= self.patience):
                return count
        return None

    def _is_used_up(self, spent: int) -> bool:
        return self.tokens is not None and spent >= self.tokens

    def shown(self, spent: int) -> dict[str, str]:
        """Tokens spent and left, for a progress bar."""
        left = {} if self.tokens is None else {"left": f"{max(self.tokens - spent, 0):,}"}
        return {"tokens": f"{spent:,}", **left}
