"""Points of the search space: feasible whatever they are made from, and the nearest there is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.rope import RopeScaling, methods
from ropewalk.rope.ramps import critical_pair
from ropewalk.search.space import CriticalSpace, SearchSpace
from tiny_runs import SPACE


def is_feasible(point: RopeScaling, space: SearchSpace) -> bool:
    factors = np.asarray(point.factors)
    steps = (factors - 1) / space.step
    low, high = space.attention_factors
    return bool(
        len(factors) == space.pairs
        and (factors >= 1).all()
        and (factors <= space.upper + 1e-9).all()
        and (np.diff(factors) >= 0).all()
        and np.allclose(steps, np.round(steps), atol=1e-6)
        and point.n_hat in space.n_hats
        and low <= point.attention_factor <= high
        and (point.original_length, point.target_length) == (space.original_length, space.target_length)
    )


spaces = st.builds(
    lambda pairs, ratio, step, low, more: SearchSpace(
        rotary_dim=2 * pairs,
        base=10_000.0,
        original_length=64,
        target_length=64 * ratio,
        upper=1.25 * ratio,
        step=step,
        attention_factors=(low, low + more),
    ),
    st.integers(2, 40),
    st.integers(1, 16),
    st.sampled_from([0.01, 0.05, 0.1]),
    st.floats(0.8, 1.2),
    st.sampled_from([0.0, 0.01, 0.5]),
)


@settings(deadline=None)
@given(spaces, st.data())
def test_any_numbers_become_a_feasible_point(space: SearchSpace, data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.floats(-10, 1000), min_size=space.pairs, max_size=space.pairs))
    point = space.point(np.asarray(factors), data.draw(st.integers(0, 500)), data.draw(st.floats(0.1, 3)))
    assert is_feasible(point, space)
    assert space.nearest(point) == point


@settings(deadline=None)
@given(st.lists(st.floats(1.0, SPACE.upper), min_size=8, max_size=8).map(sorted), st.floats(0.9, 1.6))
def test_a_monotone_point_moves_by_half_a_step_at_most(factors: list[float], attention_factor: float) -> None:
    point = SPACE.point(np.asarray(factors), 0, attention_factor)
    assert np.abs(np.asarray(point.factors) - factors).max() <= SPACE.step / 2 + 1e-9
    assert abs(point.attention_factor - attention_factor) <= 0.5e-4 + 1e-12


def test_n_hat_becomes_the_nearest_choice() -> None:
    assert [SPACE.point(np.ones(8), n_hat, 1.0).n_hat for n_hat in (0, 1, 3, 4, 100)] == [0, 1, 2, 4, 4]


def test_the_published_methods_are_in_the_space_and_close_to_their_own_factors() -> None:
    sizes = {"rotary_dim": 16, "base": 10_000.0, "original_length": 64, "target_length": 256}
    made = [methods.METHODS[name](**sizes) for name in ("pi", "ntk", "yarn", "mrrope_pro", "tailspline")]
    published = SPACE.published()
    assert [point.method for point in published] == [scaling.method for scaling in made]
    for point, scaling in zip(published, made, strict=True):
        assert is_feasible(point, SPACE)
        assert np.abs(np.asarray(point.factors) - scaling.factors).max() <= SPACE.step / 2 + 1e-9
        assert abs(point.attention_factor - scaling.attention_factor) < 1e-4


def test_a_gradient_begins_where_pairs_of_8_turns_and_more_within_the_window_are_left_alone() -> None:
    space = SearchSpace(rotary_dim=16, base=10_000.0, original_length=256, target_length=2048, upper=10.0)
    turns = 256 / (2 * np.pi) * 10_000.0 ** (-np.arange(8) / 8)
    start = np.asarray(space.start().factors)
    assert list(start == 1.0) == list(turns >= 8)
    assert list(start == 8.0) == list(turns < 1)
    assert is_feasible(space.start(), space)


critical_spaces = st.builds(
    lambda pairs, window, ratio: CriticalSpace(
        rotary_dim=2 * pairs,
        base=10_000.0,
        original_length=window,
        target_length=int(window * ratio),
        upper=2 * int(window * ratio) / window,
    ),
    st.integers(2, 64),
    st.sampled_from([64, 256, 4096]),
    st.floats(1.5, 16),
)


@settings(deadline=None)
@given(critical_spaces, st.data())
def test_longrope2s_points_lie_in_s_to_2s_from_the_critical_pair_on(space: CriticalSpace, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.floats(1, 40), min_size=space.pairs, max_size=space.pairs))
    point = space.point(np.asarray(drawn), 0, 1.1)
    assert is_feasible(point, space)
    factors, ratio = np.asarray(point.factors), space.target_length / space.original_length
    low, high = space.critical_pairs
    theoretical = critical_pair(rotary_dim=space.rotary_dim, base=space.base, original_length=space.original_length)
    assert 1 <= low <= high < space.pairs
    assert high in (theoretical, 1, space.pairs - 1)
    critical = int(min(max(np.flatnonzero(factors >= ratio - space.step / 2)[0], low), high))
    assert (factors[critical:] >= ratio - space.step).all()
    assert (factors[critical:] <= 2 * ratio + space.step).all()
    # Below it a geometric rise from 1, whatever was asked for there.
    expected = factors[critical] ** (np.arange(critical) / critical)
    assert np.abs(factors[:critical] - expected).max() <= 2 * space.step
    assert np.abs(np.asarray(space.nearest(point).factors) - factors).max() <= 2 * space.step


def test_longrope2s_critical_pair_is_its_formula() -> None:
    sizes = {"rotary_dim": 128, "target_length": 131_072, "upper": 64.0}
    # 2 * ceil(64 * log_base(L0 / 2 pi)) dimensions: 70 with LLaMA-3's base and window, 92 with LLaMA-2's.
    llama3 = CriticalSpace(base=500_000.0, original_length=8192, **sizes)  # type: ignore[arg-type]
    llama2 = CriticalSpace(base=10_000.0, original_length=4096, **sizes)  # type: ignore[arg-type]
    assert (llama3.critical_pairs, llama2.critical_pairs) == ((17, 35), (23, 46))
