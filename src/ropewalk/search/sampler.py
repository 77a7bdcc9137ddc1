"""LongRoPE's evolution as an Optuna sampler: feasible by construction, local mutations, no point evaluated twice.

Follows paper §3.2 and App. A: a first population of published methods and mutations of them, then per
generation the best as parents, half of the children mutations and half crossovers.
"""

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseGASampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ropewalk.rope import RopeScaling
from ropewalk.search.space import SearchSpace


def to_params(scaling: RopeScaling) -> dict[str, float | int]:
    factors = {f"lambda_{pair:02d}": factor for pair, factor in enumerate(scaling.factors)}
    return {**factors, "n_hat": scaling.n_hat, "attention_factor": scaling.attention_factor}


def from_params(params: dict[str, float], space: SearchSpace) -> RopeScaling:
    factors = tuple(params[f"lambda_{pair:02d}"] for pair in range(space.pairs))
    return RopeScaling(
        factors, space.original_length, space.target_length, int(params["n_hat"]), params["attention_factor"]
    )


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    pairs: dict[str, BaseDistribution] = {
        f"lambda_{pair:02d}": FloatDistribution(1.0, space.upper) for pair in range(space.pairs)
    }
    low, high = space.attention_factors
    return {**pairs, "n_hat": CategoricalDistribution(space.n_hats), "attention_factor": FloatDistribution(low, high)}


def _is_whole(trial: FrozenTrial) -> bool:
    """Whether the trial asked for a point of the space, and not only for other parameters."""
    return "attention_factor" in trial.params


class EvolutionSampler(BaseGASampler):
    """Draws each trial from (seed, number of finished trials), so that a killed study goes on as if undisturbed.

    A point is always drawn whole; parameters that an objective has beside the space's are drawn at random.

    Args:
        population_size: trials in a generation (children); the paper's is 32.
        initial: trials before the first children; the paper's is 64. Never fewer than seeds and published methods.
        parents: best trials that children come from; the paper's is 32.
        probability: chance that a gene is mutated; the paper's is 0.3.
        seeds: points evaluated first; the published methods follow them.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        population_size: int = 32,
        initial: int = 64,
        parents: int = 32,
        probability: float = 0.3,
        seeds: tuple[RopeScaling, ...] = (),
    ) -> None:
        super().__init__(population_size=population_size)
        self._space, self._seed, self._parents, self._probability = space, seed, parents, probability
        self._firsts = list(dict.fromkeys([*map(space.nearest, seeds), *space.published()]))
        self._initial = max(initial, len(self._firsts))
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raises ValueError for a parameter of the space, whose distribution then is not the space's."""
        self._raise_error_if_multi_objective(study)
        if param_name in distributions(self._space):
            raise ValueError(f"{param_name} cannot be drawn alone from {param_distribution}; ask for the space's own")
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best trials of all generations so far."""
        key = self._get_generation_key()
        before = [t for t in self._finished(study) if _is_whole(t) and t.system_attrs.get(key, 0) < generation]
        return sorted(before, key=lambda t: (t.values[0], t.number))[: self._parents]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        generation = self.get_trial_generation(study, trial)
        done = self._finished(study)
        seen = {from_params(t.params, self._space) for t in done if _is_whole(t)}
        rng = np.random.default_rng((self._seed, len(done)))
        parents: list[RopeScaling] = []
        if len(done) >= self._initial and generation > 0:
            # The base class caches parents by trial number only; a child prefers the better of two.
            best_first = sorted(self.get_parent_population(study, generation), key=lambda t: (t.values[0], t.number))
            parents = [from_params(t.params, self._space) for t in best_first]
        for attempt in range(200):
            chosen = self._child(parents, rng) if parents else self._first_population(len(done), attempt, rng)
            if chosen not in seen:
                break
        params: dict[str, Any] = to_params(chosen)
        return {
            name: params[name] if name in params else self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    @staticmethod
    def _finished(study: Study) -> list[FrozenTrial]:
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _first_population(self, index: int, attempt: int, rng: np.random.Generator) -> RopeScaling:
        if index < len(self._firsts) and attempt == 0:
            return self._firsts[index]
        return self._mutate(self._firsts[int(rng.integers(len(self._firsts)))], rng)

    def _child(self, parents: list[RopeScaling], rng: np.random.Generator) -> RopeScaling:
        # Better parents more often: the better of two drawn at random.
        one = parents[int(rng.integers(len(parents), size=2).min())]
        if rng.random() < 0.5:
            return self._mutate(one, rng)
        return self._cross(one, parents[int(rng.integers(len(parents)))], rng)

    def _mutate(self, parent: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        """Change increments of log lambda one by one, or raise and lower a stretch of neighbours together."""
        logs = np.log(np.asarray(parent.factors))
        size = np.exp(rng.uniform(np.log(0.01), np.log(0.2)))
        if rng.random() < 0.5:
            steps = np.diff(logs, prepend=0.0)
            chosen = rng.random(len(steps)) < self._probability
            steps = np.where(chosen, np.abs(steps + size * rng.normal(size=len(steps))), steps)
            logs = np.cumsum(steps)
        else:
            pairs = np.arange(len(logs))
            width = rng.uniform(0.5, len(logs) / 4)
            logs = logs + size * rng.normal() * np.exp(-0.5 * ((pairs - rng.uniform(0, len(logs))) / width) ** 2)
        n_hat, t = parent.n_hat, parent.attention_factor
        if rng.random() < self._probability:
            place = self._space.n_hats.index(n_hat) + int(rng.choice([-1, 1]))
            n_hat = self._space.n_hats[min(max(place, 0), len(self._space.n_hats) - 1)]
        if rng.random() < self._probability:
            t *= np.exp(0.3 * size * rng.normal())
        return self._space.point(np.exp(logs), n_hat, t)

    def _cross(self, one: RopeScaling, other: RopeScaling, rng: np.random.Generator) -> RopeScaling:
        """Low pairs of one and high pairs of the other, or a blend of both along their line; monotone either way."""
        a, b = np.log(np.asarray(one.factors)), np.log(np.asarray(other.factors))
        if rng.random() < 0.5:
            cut = int(rng.integers(1, len(a)))
            steps = np.where(np.arange(len(a)) < cut, np.diff(a, prepend=0.0), np.diff(b, prepend=0.0))
            logs, share = np.cumsum(steps), cut / len(a)
        else:
            share = rng.uniform(-0.3, 1.3)
            logs = share * a + (1 - share) * b
        t = share * one.attention_factor + (1 - share) * other.attention_factor
        return self._space.point(np.exp(logs), (one if rng.random() < 0.5 else other).n_hat, t)
