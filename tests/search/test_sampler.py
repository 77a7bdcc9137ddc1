"""The evolution as an Optuna sampler: Optuna's own suites, then what LongRoPE's search asks of it.

`MultiObjectiveSamplerTestCase` is left out: the sampler minimises one loss and refuses several.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import TrialState

from ropewalk.rope import RopeScaling
from ropewalk.search.distributed.trials import requeue
from ropewalk.search.evolution import ESTIMATE, EvolutionSampler, PaperSampler, StartTokenSampler
from ropewalk.search.space import FactorEncoding, SearchSpace
from search.test_space import is_feasible, spaces
from tiny_runs import SPACE

SIXTEEN_PAIRS = replace(SPACE, rotary_dim=32)
GENERATION = "EvolutionSampler:generation"
"""Under which BaseGASampler keeps a trial's generation."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


class TestOptunaSuites(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture(params=[EvolutionSampler, PaperSampler, StartTokenSampler])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: request.param(SPACE, seed=0, population_size=4, initial_population=4, num_parents=4)


def evolve(
    space: SearchSpace,
    trials: int,
    loss: Callable[[int, RopeScaling], float],
    kind: type[EvolutionSampler] = EvolutionSampler,
    **more: object,
) -> tuple[optuna.Study, list[RopeScaling]]:
    """(study, points in order) of ``trials`` trials with the losses that ``loss`` (number, point) gives."""
    sizes = {"population_size": 8, "initial_population": 16, "num_parents": 8, "seed": 0, **more}
    study = optuna.create_study(sampler=kind(space, **sizes))  # type: ignore[arg-type]
    points = []
    for number in range(trials):
        trial = study.ask(dict(FactorEncoding(space).distributions()))
        points.append(FactorEncoding(space).point(trial.params))
        study.tell(trial, loss(number, points[-1]))
    return study, points


def far_from_rising(_: int, point: RopeScaling) -> float:
    wanted = np.linspace(1, 4, len(point.factors))
    return float(np.square(np.asarray(point.factors) - wanted).sum()) + abs(point.attention_factor - 1.2)


@settings(max_examples=15, deadline=None)
@given(spaces.filter(lambda space: space.target_length >= 4 * space.original_length), st.integers(0, 99))
def test_every_point_is_feasible_and_none_is_drawn_twice(space: SearchSpace, seed: int) -> None:
    _, points = evolve(space, 40, far_from_rising, seed=seed)
    assert all(is_feasible(point, space) for point in points)
    assert len(set(points)) == 40


def test_the_first_population_begins_with_the_first_points_then_the_published_methods() -> None:
    first_points = (replace(SPACE.published()[0], attention_factor=1.3), replace(SPACE.published()[1], n_hat=2))
    _, points = evolve(SPACE, 16, far_from_rising, first_points=first_points)
    assert points[:7] == [*first_points, *SPACE.published()]


def test_generations_are_counted_by_position() -> None:
    study, _ = evolve(SPACE, 40, far_from_rising)
    generations = [trial.system_attrs[GENERATION] for trial in study.trials]
    assert generations == [0] * 16 + [1] * 8 + [2] * 8 + [3] * 8
    assert isinstance(study.sampler, EvolutionSampler)
    assert [len(study.sampler.get_population(study, generation)) for generation in range(5)] == [16, 8, 8, 8, 0]


def test_parents_are_the_best_so_far_and_the_papers_those_of_earlier_generations() -> None:
    study, _ = evolve(SPACE, 30, far_from_rising)
    paper, _ = evolve(SPACE, 30, far_from_rising, kind=PaperSampler)
    for searched, among in ((study, study.trials), (paper, paper.trials[:24])):
        assert isinstance(searched.sampler, EvolutionSampler)
        best = sorted(among, key=lambda trial: (trial.value, trial.number))[:8]
        assert searched.sampler.select_parent(searched, 2) == best


@pytest.mark.parametrize(("estimate", "parents"), [(None, 0), (0.0, 8), (100.0, 0)])
def test_a_trial_that_was_stopped_early_is_a_parent_by_its_estimate(estimate: float | None, parents: int) -> None:
    study = optuna.create_study(
        sampler=EvolutionSampler(SPACE, seed=0, population_size=8, initial_population=16, num_parents=8)
    )
    for number in range(40):
        trial = study.ask(dict(FactorEncoding(SPACE).distributions()))
        if number % 2:
            trial.report(0.0, 0)
            if estimate is not None:
                trial.set_user_attr(ESTIMATE, estimate)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, far_from_rising(0, FactorEncoding(SPACE).point(trial.params)))
    assert isinstance(study.sampler, EvolutionSampler)
    selected = study.sampler.select_parent(study, 9)
    assert sum(trial.state == TrialState.PRUNED for trial in selected) == parents
    assert len(selected) == 8
    assert len({FactorEncoding(SPACE).point(trial.params) for trial in study.trials}) == 40


def test_only_n_hat_is_tried_after_the_first_points() -> None:
    _, points = evolve(SPACE, 16 + 3, far_from_rising, kind=StartTokenSampler)
    best = min(points[:16], key=lambda point: far_from_rising(0, point))
    assert {point.factors for point in points[16:]} == {best.factors}
    assert sorted([best.n_hat, *(point.n_hat for point in points[16:])]) == list(SPACE.n_hats)


def test_evolution_gets_nearer_to_the_optimum() -> None:
    study, _ = evolve(SPACE, 160, far_from_rising)
    losses = [trial.value for trial in study.trials]
    assert min(losses[64:]) < 0.5 * min(losses[:16])


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["pi", "ntk", "yarn"])
def test_mutation_is_local(kind: int) -> None:
    """Children of one parent alone: a crossover with itself is that parent, and never drawn again."""
    parent = SIXTEEN_PAIRS.published()[kind]
    _, points = evolve(
        SIXTEEN_PAIRS,
        160,
        lambda _, point: float(point != parent),
        population_size=8,
        initial_population=8,
        num_parents=1,
        first_points=(parent,),
    )
    moves = np.array([np.abs(np.log(point.factors) - np.log(parent.factors)) for point in points[8:]])
    # Where a pair has room between its neighbours, as NTK's and YaRN's have, many children move one alone.
    assert kind == 0 or ((moves > 0).sum(1) == 1).mean() > 0.15
    assert (moves < 0.05).mean() > 0.6
    assert np.median(moves.max(1)) < 0.15


def test_crossover_takes_low_pairs_of_one_and_high_pairs_of_the_other_or_blends_both() -> None:
    low, high = SPACE.point(np.linspace(1, 2, 8), 0, 1.0), SPACE.point(np.geomspace(1, 4.5, 8), 4, 1.4)
    losses = {low: 0.0, high: 0.1}
    _, points = evolve(
        SPACE,
        80,
        lambda _, point: losses.get(point, 1.0),
        population_size=8,
        initial_population=8,
        num_parents=2,
        first_points=(low, high),
    )
    assert all(is_feasible(point, SPACE) for point in points)
    a, b = np.log(low.factors), np.log(high.factors)
    children = np.array([point.factors for point in points[8:]])

    def made(logs: np.ndarray) -> bool:
        """Whether some child is this, but for rounding to the step."""
        return bool((np.abs(children - np.exp(logs)).max(1) < SPACE.step).any())

    def spliced(first: np.ndarray, other: np.ndarray, cut: int) -> np.ndarray:
        return np.cumsum(np.concatenate([np.diff(first, prepend=0.0)[:cut], np.diff(other, prepend=0.0)[cut:]]))

    assert sum(made(spliced(a, b, cut)) or made(spliced(b, a, cut)) for cut in range(1, 8)) >= 3
    blends = [share for share in np.linspace(0.02, 0.98, 97) if made(share * a + (1 - share) * b)]
    assert len(blends) >= 3


@pytest.mark.parametrize("fixed", [1.0, 1.17324091])
def test_a_fixed_attention_factor_stays_fixed(fixed: float) -> None:
    study, points = evolve(replace(SPACE, attention_factors=(fixed, fixed)), 40, far_from_rising)
    assert {point.attention_factor for point in points} == {fixed}
    assert {trial.params["attention_factor"] for trial in study.trials} == {fixed}


def test_the_same_seed_draws_the_same_points_and_another_seed_others() -> None:
    runs = [evolve(SPACE, 30, far_from_rising, seed=seed)[1] for seed in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("kind", [EvolutionSampler, PaperSampler])
def test_a_trial_given_back_keeps_its_place_and_point(kind: type[EvolutionSampler]) -> None:
    _, undisturbed = evolve(SPACE, 30, far_from_rising, kind=kind)
    study = optuna.create_study(sampler=kind(SPACE, seed=0, population_size=8, initial_population=16, num_parents=8))
    points: list[RopeScaling] = []
    for number in itertools.count():
        trial = study.ask(dict(FactorEncoding(SPACE).distributions()))
        if number in (5, 7, 20):
            requeue(study, study.trials[-1])
            continue
        points.append(FactorEncoding(SPACE).point(trial.params))
        study.tell(trial, far_from_rising(0, points[-1]))
        if len(points) == 30:
            break
    assert points == undisturbed


def test_a_trial_that_fails_by_itself_takes_its_place() -> None:
    study, _ = evolve(SPACE, 3, far_from_rising)
    study.tell(study.ask(dict(FactorEncoding(SPACE).distributions())), state=TrialState.FAIL)
    _, undisturbed = evolve(SPACE, 5, far_from_rising)
    trial = study.ask(dict(FactorEncoding(SPACE).distributions()))
    assert FactorEncoding(SPACE).point(trial.params) == undisturbed[4]


def test_parameters_and_points_are_one_to_one() -> None:
    for point in SPACE.published():
        assert FactorEncoding(SPACE).point(FactorEncoding(SPACE).params(point)) == point


def test_a_factor_with_another_range_than_the_spaces_is_refused() -> None:
    study = optuna.create_study(sampler=EvolutionSampler(SPACE, seed=0))
    with pytest.raises(ValueError, match="lambda_00 cannot be drawn alone"):
        study.ask().suggest_float("lambda_00", 100.0, 200.0)
