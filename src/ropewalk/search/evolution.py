"""Searches by evolution as Optuna samplers: feasible by construction, resumable, no point evaluated twice.

A trial's place is its position in the study's schedule: the count of trials before it that were not retries of
another. All that is drawn for a trial is a function of the seed, its position and the trials finished by then, so
a study that was killed resumes as if undisturbed, and the retry of a trial whose worker died stands for the trial.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ropewalk.config import SearchConfig
from ropewalk.rope import RopeScaling
from ropewalk.search.distributed import positions
from ropewalk.search.space import FactorEncoding, SearchSpace

ESTIMATE = "estimated_loss"
"""User attribute of a trial that was stopped early: its loss by the blocks that both it and the best have read."""


def judged(study: Study) -> list[FrozenTrial]:
    """The trials whose loss is known, or estimated where they were stopped early; failed trials are left out."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [trial for trial in trials if trial.state == TrialState.COMPLETE or ESTIMATE in trial.user_attrs]


def _loss(trial: FrozenTrial) -> float:
    loss: float = trial.values[0] if trial.state == TrialState.COMPLETE else trial.user_attrs[ESTIMATE]
    return loss


class EvolutionSampler(BaseGASampler):
    """Children of the best trials so far, by local mutations of log lambda's increments and crossovers of two parents.

    There is no barrier between generations: a child is bred from the trials that are finished when it is drawn. A trial
    that was stopped early belongs to its generation and can become a parent by its estimated loss, so that racing saves
    tokens without reducing diversity. The parameters of a point are always drawn together; further parameters of an
    objective are drawn at random.

    Args:
        population_size: trials in a generation (children); the paper's is 32.
        initial_population: trials before the first children; the paper's is 64. It is never fewer than the first points
            and the published methods together.
        num_parents: best trials that children come from; the paper's is 32.
        probability: chance that a gene is mutated; the paper's is 0.3.
        first_points: points that are evaluated first; the published methods follow them.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        population_size: int = 32,
        initial_population: int = 64,
        num_parents: int = 32,
        probability: float = 0.3,
        first_points: tuple[RopeScaling, ...] = (),
    ) -> None:
        super().__init__(population_size=population_size)
        self._space, self._seed, self._parents, self._probability = space, seed, num_parents, probability
        self._encoding = FactorEncoding(space)
        self._names = self._encoding.distributions()
        self.first_points = list(dict.fromkeys([*map(space.nearest, first_points), *space.published()]))
        self._initial = max(initial_population, len(self.first_points))
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._encoding.distributions())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raises ValueError for a parameter of the space, whose distribution then is not the space's."""
        self._raise_error_if_multi_objective(study)
        if param_name in self._names:
            raise ValueError(f"{param_name} cannot be drawn alone from {param_distribution}; ask for the space's own")
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """0 for the first population, and one more for every ``population_size`` positions after it."""
        position = positions(study.get_trials(deepcopy=False))[trial.number]
        assert self.population_size is not None
        generation = 0 if position < self._initial else 1 + (position - self._initial) // self.population_size
        if self._get_generation_key() not in trial.system_attrs:
            study._storage.set_trial_system_attr(trial._trial_id, self._get_generation_key(), generation)
        return generation

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best trials so far."""
        return self._best(judged(study))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        generation = self.get_trial_generation(study, trial)
        trials = study.get_trials(deepcopy=False)
        position_of = positions(trials)
        position = position_of[trial.number]
        # Points that dead workers drew for this same position are left out.
        seen = {
            self._encoding.point(other.params)
            for other in trials
            if position_of[other.number] != position and self._names.keys() <= other.params.keys()
        }
        rng = np.random.default_rng((self._seed, position))
        parents = self.parents_of(study, generation) if position >= self._initial else []
        for attempt in range(200):
            point = self._child(parents, attempt, rng) if parents else self._first(position, attempt, rng)
            if point not in seen:
                break
        params = self._encoding.params(point)
        return {
            name: params[name] if name in params else self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def parents_of(self, study: Study, generation: int) -> list[RopeScaling]:
        """Parents of a child of ``generation``, best first."""
        return [self._encoding.point(trial.params) for trial in self.select_parent(study, generation)]

    def _best(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        whole = [trial for trial in trials if self._names.keys() <= trial.params.keys()]
        return sorted(whole, key=lambda trial: (_loss(trial), trial.number))[: self._parents]

    def _first(self, position: int, attempt: int, rng: np.random.Generator) -> RopeScaling:
        if position < len(self.first_points) and attempt == 0:
            return self.first_points[position]
        return self._mutate(self.first_points[int(rng.integers(len(self.first_points)))], rng)

    def _child(self, parents: list[RopeScaling], attempt: int, rng: np.random.Generator) -> RopeScaling:
        # The better of two drawn at random, so that better parents are chosen more often.
        parent = parents[int(rng.integers(len(parents), size=2).min())]
        if rng.random() < 0.5:
            return self._mutate(parent, rng)
        return self._cross(parent, parents[int(rng.integers(len(parents)))], rng)

    def _mutate(self, parent: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        """Move one pair between its neighbours, change increments of log lambda, or move a stretch of neighbours."""
        logs = np.log(np.asarray(parent.factors))
        size = np.exp(rng.uniform(np.log(0.01), np.log(0.2)))
        kind = rng.random()
        if kind < 1 / 3:
            # Loss over the factor of a pair that turns fast has many valleys; the next one is a single move away.
            pair = int(rng.integers(len(logs)))
            below, above = logs[pair - 1] if pair else 0.0, logs[pair + 1] if pair + 1 < len(logs) else np.inf
            logs[pair] = np.clip(logs[pair] + size * rng.normal(), below, above)
        elif kind < 2 / 3:
            steps = np.diff(logs, prepend=0.0)
            chosen = rng.random(len(steps)) < min(self._probability, 5 / len(steps))
            moved = np.where(chosen, np.abs(steps + size * rng.normal(size=len(steps))), steps)
            # Half of the time, the next pair takes back what a changed increment adds, so the change stays local.
            logs = np.cumsum(moved)
            if rng.random() < 0.5:
                logs = np.where(chosen, logs, np.cumsum(steps))
        else:
            pairs = np.arange(len(logs))
            width = rng.uniform(0.5, len(logs) / 4)
            logs = logs + size * rng.normal() * np.exp(-0.5 * ((pairs - rng.uniform(0, len(logs))) / width) ** 2)
        n_hat, t = parent.n_hat, parent.attention_factor
        if rng.random() < self._probability:
            index = self._space.n_hats.index(n_hat) + int(rng.choice([-1, 1]))
            n_hat = self._space.n_hats[min(max(index, 0), len(self._space.n_hats) - 1)]
        if rng.random() < self._probability:
            t *= np.exp(0.3 * size * rng.normal())
        return self._space.point(np.exp(logs), n_hat, t)

    def _cross(self, parent: RopeScaling, other: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        """Low pairs of one parent and high pairs of the other, or a blend of both; monotone either way."""
        a, b = np.log(np.asarray(parent.factors)), np.log(np.asarray(other.factors))
        if rng.random() < 0.5:
            cut = int(rng.integers(1, len(a)))
            steps = np.where(np.arange(len(a)) < cut, np.diff(a, prepend=0.0), np.diff(b, prepend=0.0))
            logs, share = np.cumsum(steps), cut / len(a)
        else:
            share = rng.uniform(-0.3, 1.3)
            logs = share * a + (1 - share) * b
        t = share * parent.attention_factor + (1 - share) * other.attention_factor
        return self._space.point(np.exp(logs), (parent if rng.random() < 0.5 else other).n_hat, t)


class PaperSampler(EvolutionSampler):
    """The paper's own operators (§3.2, App. A): a changed gene is drawn anew, children mix the genes of two parents.

    A gene is drawn between its neighbours, so that no child has to be thrown away for not being monotone.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best trials of all generations before ``generation``."""
        key = self._get_generation_key()
        return self._best([trial for trial in judged(study) if trial.system_attrs.get(key, 0) < generation])

    def parents_of(self, study: Study, generation: int) -> list[RopeScaling]:
        # The base class caches parents by trial number only; a child prefers the better of two.
        parents = self._best(self.get_parent_population(study, generation))
        return [self._encoding.point(trial.params) for trial in parents]

    def _mutate(self, parent: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        factors = np.asarray(parent.factors)
        for pair in np.flatnonzero(rng.random(len(factors)) < self._probability):
            below = factors[pair - 1] if pair else 1.0
            above = factors[pair + 1] if pair + 1 < len(factors) else self._space.upper
            factors[pair] = rng.uniform(below, max(above, below))
        n_hat, t = parent.n_hat, parent.attention_factor
        if rng.random() < self._probability:
            n_hat = self._space.n_hats[int(rng.integers(len(self._space.n_hats)))]
        if rng.random() < self._probability:
            t = rng.uniform(*self._space.attention_factors)
        return self._space.point(factors, n_hat, t)

    def _cross(self, parent: RopeScaling, other: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        takes = rng.random(len(parent.factors)) < self._probability
        factors = np.where(takes, other.factors, parent.factors)
        n_hat = (other if rng.random() < self._probability else parent).n_hat
        t = (other if rng.random() < self._probability else parent).attention_factor
        return self._space.point(factors, n_hat, t)


class StartTokenSampler(EvolutionSampler):
    """After the first points, tries the best of them under every other n_hat, the smallest first."""

    def _child(self, parents: list[RopeScaling], attempt: int, rng: np.random.Generator) -> RopeScaling:
        best, choices = parents[0], self._space.n_hats
        if attempt < len(choices):
            return self._space.point(np.asarray(best.factors), choices[attempt], best.attention_factor)
        return self._mutate(best, rng)


def evolution(
    encoding: FactorEncoding,
    config: SearchConfig,
    seed: int,
    first_points: Sequence[RopeScaling],
    kind: type[EvolutionSampler] = EvolutionSampler,
) -> EvolutionSampler:
    """An evolution of ``kind`` as the configuration asks for it."""
    return kind(
        encoding.space,
        seed=seed,
        population_size=config.population_size,
        initial_population=config.initial_population,
        num_parents=config.num_parents,
        probability=config.mutation_probability,
        first_points=tuple(first_points),
    )


paper = partial(evolution, kind=PaperSampler)
start_tokens = partial(evolution, kind=StartTokenSampler)
