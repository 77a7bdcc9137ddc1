"""Optuna's own samplers on a few monotone knots, as yardsticks: CMA-ES, TPE and random search."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ropewalk.search.coding import KnotCoding
from ropewalk.search.sampler import positions

YARDSTICKS: dict[str, Callable[[int], BaseSampler]] = {
    "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


class KnotSampler(BaseSampler):
    """The published methods as near as the knots allow, then what one of Optuna's samplers draws.

    That sampler is made anew from (seed, position) for every trial, so that a killed study goes on as if
    undisturbed; CMA-ES keeps its state in the study and counts trials, so there a kill may change what follows.
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
                self._own = (trial.number, YARDSTICKS[self._kind](int(rng.integers(2**31))))
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
        return self._sampler(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler(study, trial).after_trial(study, trial, state, values)
