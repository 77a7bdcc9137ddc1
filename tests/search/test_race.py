"""When a race gives a candidate up: Optuna's own test where that is sound, and where easy documents come first."""

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.pruners import BasePruner, WilcoxonPruner

from ropewalk.search.stopping import RacePruner, estimated_loss

pytestmark = pytest.mark.filterwarnings("ignore:WilcoxonPruner is experimental")
EASY_FIRST = np.repeat([1.0, 3.0], [8, 24])
"""Block losses of the best trial."""


def stopped(pruner: BasePruner, best: np.ndarray, other: np.ndarray) -> bool:
    """Whether a trial is given up after ``other``, where the best has read the blocks of ``best``."""
    study = optuna.create_study(pruner=pruner)
    first = study.ask()
    for block, value in enumerate(best):
        first.report(value, block)
    study.tell(first, float(best.mean()))
    trial = study.ask()
    for block, value in enumerate(other):
        trial.report(value, block)
    return trial.should_prune()


def test_a_candidate_is_given_up_at_its_first_document_though_that_is_an_easy_one() -> None:
    other = EASY_FIRST[:8] + np.linspace(0.1, 0.2, 8)
    assert stopped(RacePruner(p_value=0.05), EASY_FIRST, other)
    assert not stopped(WilcoxonPruner(p_threshold=0.05, n_startup_steps=8), EASY_FIRST, other)


@pytest.mark.parametrize("ahead", [-0.1, 0.0])
def test_one_that_is_as_good_or_better_continues(ahead: float) -> None:
    assert not stopped(RacePruner(p_value=0.3), EASY_FIRST, EASY_FIRST[:16] + ahead)


def test_fewer_blocks_than_a_document_has_say_nothing() -> None:
    assert not stopped(RacePruner(p_value=0.3), EASY_FIRST, EASY_FIRST[:7] + 1.0)


def test_the_first_trial_has_nothing_to_be_compared_with() -> None:
    study = optuna.create_study(pruner=RacePruner(p_value=0.3))
    trial = study.ask()
    for block in range(16):
        trial.report(9.0, block)
    assert not trial.should_prune()


def test_the_estimate_is_the_best_and_how_far_behind_it_a_candidate_was() -> None:
    best = optuna.trial.create_trial(value=2.5, intermediate_values=dict(enumerate(EASY_FIRST)))
    assert estimated_loss(dict(enumerate(EASY_FIRST[:8] + 0.1)), best) == pytest.approx(2.6)
    assert estimated_loss({7: 1.2, 8: 3.4, 99: 50.0}, best) == pytest.approx(2.8)


@given(st.integers(0, 2**32 - 1), st.floats(-0.1, 0.1), st.sampled_from([0.05, 0.3]))
def test_over_all_blocks_it_is_optunas_own_test(seed: int, behind: float, p_value: float) -> None:
    rng = np.random.default_rng(seed)
    best = rng.normal(3.0, 0.5, size=32)
    other = best + rng.normal(behind, 0.1, size=32)
    optunas = WilcoxonPruner(p_threshold=p_value, n_startup_steps=8)
    assert stopped(RacePruner(p_value=p_value), best, other) == stopped(optunas, best, other)
