"""Optuna's own samplers on a few monotone knots, as baseline samplers: CMA-ES, TPE and random search."""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ropewalk.config import SearchConfig
from ropewalk.rope import RopeScaling, methods
from ropewalk.search.distributed import positions
from ropewalk.search.space import KnotEncoding, Params

Make = Callable[[int, Params], BaseSampler]
"""Makes a sampler from a seed and the parameters of YaRN, around which CMA-ES begins."""


class KnotSampler(BaseSampler):
    """Draws the published methods, as nearly as the knots allow, and then with one of Optuna's samplers.

    That sampler is made anew from (seed, position) for every trial, so that a killed study resumes as if undisturbed.
    """

    def __init__(
        self,
        encoding: KnotEncoding,
        config: SearchConfig,
        seed: int,
        first_points: Sequence[RopeScaling],
        *,
        make: Make,
    ) -> None:
        self._encoding, self._make, self._seed = encoding, make, seed
        self._first_points = encoding.space.published()
        self._of_trial: tuple[int, BaseSampler] | None = None

    def _position(self, study: Study, trial: FrozenTrial) -> int:
        return positions(study.get_trials(deepcopy=False))[trial.number]

    def _sampler(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if self._of_trial is None or self._of_trial[0] != trial.number:
            rng = np.random.default_rng((self._seed, self._position(study, trial)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                start = self._encoding.params(self._encoding.space.apply(methods.yarn))
                self._of_trial = (trial.number, self._make(int(rng.integers(2**31)), start))
        return self._of_trial[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._position(study, trial) < len(self._first_points):
            return dict(self._encoding.distributions())
        return self._sampler(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        position = self._position(study, trial)
        if position < len(self._first_points):
            return dict(self._encoding.params(self._first_points[position]))
        sampler = self._sampler(study, trial)
        if isinstance(sampler, CmaEsSampler):  # which draws by the number
            trial = copy.copy(trial)
            trial.number = position
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler(study, trial).after_trial(study, trial, state, values)


cmaes = partial(
    KnotSampler, make=lambda seed, start: CmaEsSampler(x0=start, seed=seed, warn_independent_sampling=False)
)
tpe = partial(KnotSampler, make=lambda seed, start: TPESampler(seed=seed))
random = partial(KnotSampler, make=lambda seed, start: RandomSampler(seed=seed))
