"""Optuna's own samplers on a few monotone knots, as yardsticks: CMA-ES, TPE and random search."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ropewalk.search.coding import KnotCoding, Params
from ropewalk.search.sampler import positions

YARDSTICKS: dict[str, Callable[[int, Params], BaseSampler]] = {
    "cmaes": lambda seed, start: CmaEsSampler(x0=start, seed=seed, warn_independent_sampling=False),
    "tpe": lambda seed, start: TPESampler(seed=seed),
    "random": lambda seed, start: RandomSampler(seed=seed),
}
"""From a seed and the parameters of YaRN, around which CMA-ES begins."""


class KnotSampler(BaseSampler):
    """The published methods as near as the knots allow, then what one of Optuna's samplers draws.

    That sampler is made anew from (seed, position) for every trial and sees the position as the trial's number,
    so that a killed study goes on as if undisturbed.
    """

    def __init__(self, coding: KnotCoding, *, kind: str, seed: int) -> None:
        self._coding, self._kind, self._seed = coding, kind, seed
        self._firsts = coding.space.published()
        self._own: tuple[int, BaseSampler] | None = None

    def _position(self, study: Study, trial: FrozenTrial) -> int:
        return positions(study.get_trials(deepcopy=False))[trial.number]

    def _sampler(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if self._own is None or self._own[0] != trial.number:
            rng = np.random.default_rng((self._seed, self._position(study, trial)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                start = self._coding.params(self._firsts[-1])
                self._own = (trial.number, YARDSTICKS[self._kind](int(rng.integers(2**31)), start))
        return self._own[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._position(study, trial) < len(self._firsts):
            return dict(self._coding.distributions())
        return self._sampler(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        position = self._position(study, trial)
        if position < len(self._firsts):
            return dict(self._coding.params(self._firsts[position]))
        numbered = copy.copy(trial)
        numbered.number = position  # CMA-ES draws by it
        return self._sampler(study, trial).sample_relative(study, numbered, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler(study, trial).after_trial(study, trial, state, values)
