"""A few knots stand for any monotone factors, and back."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ropewalk.search.space import Distribution, FactorEncoding, KnotEncoding, SearchSpace
from search.test_space import is_feasible, spaces
from tiny_runs import SPACE

KNOTS = KnotEncoding(SPACE, 6)


def values(wanted: Distribution) -> st.SearchStrategy[float]:
    if isinstance(wanted, CategoricalDistribution):
        return st.sampled_from([float(choice) for choice in wanted.choices])  # type: ignore[arg-type]
    if isinstance(wanted, IntDistribution):
        return st.integers(wanted.low, wanted.high).map(float)
    assert isinstance(wanted, FloatDistribution)
    return st.floats(wanted.low, wanted.high)


@settings(deadline=None, max_examples=50)
@given(spaces, st.integers(2, 12), st.data())
def test_any_knots_are_a_feasible_point(space: SearchSpace, knots: int, data: st.DataObject) -> None:
    encoding = KnotEncoding(space, knots)
    params = {name: data.draw(values(wanted)) for name, wanted in encoding.distributions().items()}
    assert is_feasible(encoding.point(params), space)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, math.log(SPACE.upper)), st.sampled_from(SPACE.n_hats), st.floats(0.9, 1.6))
def test_factors_on_straight_lines_are_kept(highest: float, n_hat: int, attention_factor: float) -> None:
    point = SPACE.point(np.exp(np.linspace(0, highest, SPACE.pairs)), n_hat, attention_factor)
    again = KNOTS.point(KNOTS.params(point))
    assert (again.n_hat, again.attention_factor) == (point.n_hat, point.attention_factor)
    assert np.abs(np.asarray(again.factors) - point.factors).max() <= 2 * SPACE.step


def test_the_parameters_of_every_published_method_are_within_their_bounds() -> None:
    for encoding in (KNOTS, FactorEncoding(SPACE)):
        for point in SPACE.published():
            params = encoding.params(point)
            assert params.keys() == encoding.distributions().keys()
            for name, wanted in encoding.distributions().items():
                assert wanted._contains(wanted.to_internal_repr(params[name]))


def test_every_point_of_a_space_with_query_scales_has_them() -> None:
    space = replace(SPACE, query_scales=((1.1, 0.9),))
    for point in space.published():
        assert point.query_scales == space.query_scales
        assert FactorEncoding(space).point(FactorEncoding(space).params(point)) == point
        assert KnotEncoding(space).point(KnotEncoding(space).params(point)).query_scales == space.query_scales
    other = replace(SPACE.published()[0], query_scales=((2.0, 2.0),))
    assert space.nearest(other).query_scales == other.query_scales
