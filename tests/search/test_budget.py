"""The end of a search follows from its first trials alone, whatever came after them."""

import math

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from ropewalk.search.stopping import TOKENS, Budget

TRIALS = st.lists(st.tuples(st.floats(1.0, 3.0) | st.none(), st.integers(0, 100)), max_size=30)
LIMIT = st.integers(1, 12) | st.none()


def trials_of(values: list[tuple[float | None, int]]) -> list[FrozenTrial]:
    return [
        optuna.trial.create_trial(
            value=loss,
            state=TrialState.PRUNED if loss is None else TrialState.COMPLETE,
            user_attrs={TOKENS: tokens},
        )
        for loss, tokens in values
    ]


@given(TRIALS, st.integers(0, 1000) | st.none(), LIMIT, st.integers(0, 200))
def test_the_end_is_where_the_first_limit_is_met(
    values: list[tuple[float | None, int]], tokens: int | None, patience: int | None, spent: int
) -> None:
    budget, trials = Budget(tokens, patience, 0.0), trials_of(values)
    end = budget.end(spent, trials)
    for count in range(len(trials) + 1):
        assert budget.end(spent, trials[:count]) == (None if end is None or count < end else end)
    paid = [spent + sum(cost for _, cost in values[:count]) for count in range(len(values) + 1)]
    limit = next((count for count, sum_ in enumerate(paid) if tokens is not None and sum_ >= tokens), None)
    assert limit is None or (end is not None and end <= limit)
    if end is not None and end != limit:
        assert patience is not None
        assert end >= patience
        before = min((loss for loss, _ in values[: end - patience] if loss is not None), default=math.inf)
        assert all(loss >= before for loss, _ in values[end - patience : end] if loss is not None)


def test_what_is_less_than_the_least_gain_is_none() -> None:
    trials = trials_of([(2.0, 0), (1.95, 0), (1.9, 0), (1.85, 0)])
    assert Budget(None, 2, 0.0).end(0, trials) is None
    assert Budget(None, 2, 0.06).end(0, trials) is None
    assert Budget(None, 2, 0.2).end(0, trials) == 3


def test_without_limits_a_search_does_not_end_early() -> None:
    assert Budget(None, None, 0.0).end(10**9, trials_of([(2.0, 5)] * 20)) is None
