"""How a point of the search space becomes Optuna's parameters: every factor itself, or a few knots between them."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from ropewalk.rope import RopeScaling
from ropewalk.search.space import SearchSpace

Params = dict[str, Any]
Distribution = FloatDistribution | IntDistribution | CategoricalDistribution


class Coding(Protocol):
    """Parameters of Optuna trials that stand for points of a space."""

    @property
    def space(self) -> SearchSpace: ...

    def distributions(self) -> dict[str, Distribution]: ...

    def point(self, params: Params) -> RopeScaling: ...

    def params(self, scaling: RopeScaling) -> Params: ...


def ask(trial: Trial, coding: Coding) -> Params:
    """The trial's parameters."""
    return {name: _suggest(trial, name, wanted) for name, wanted in coding.distributions().items()}


def _suggest(trial: Trial, name: str, wanted: Distribution) -> Any:
    if isinstance(wanted, CategoricalDistribution):
        return trial.suggest_categorical(name, wanted.choices)
    if isinstance(wanted, IntDistribution):
        return trial.suggest_int(name, wanted.low, wanted.high)
    return trial.suggest_float(name, wanted.low, wanted.high)


def _attention_factor(space: SearchSpace) -> FloatDistribution:
    return FloatDistribution(*space.attention_factors)


@dataclass(frozen=True)
class FactorCoding:
    """lambda_00, lambda_01, … are the factors themselves."""

    space: SearchSpace

    def distributions(self) -> dict[str, Distribution]:
        factors = {f"lambda_{pair:02d}": FloatDistribution(1.0, self.space.upper) for pair in range(self.space.pairs)}
        return {
            **factors,
            "n_hat": CategoricalDistribution(self.space.n_hats),
            "attention_factor": _attention_factor(self.space),
        }

    def point(self, params: Params) -> RopeScaling:
        factors = tuple(params[f"lambda_{pair:02d}"] for pair in range(self.space.pairs))
        return RopeScaling(
            factors,
            self.space.original_length,
            self.space.target_length,
            int(params["n_hat"]),
            params["attention_factor"],
        )

    def params(self, scaling: RopeScaling) -> Params:
        factors = {f"lambda_{pair:02d}": factor for pair, factor in enumerate(scaling.factors)}
        return {**factors, "n_hat": scaling.n_hat, "attention_factor": scaling.attention_factor}


@dataclass(frozen=True)
class KnotCoding:
    """rise_0, rise_1, … are how far log lambda rises up to each of a few pairs, with straight lines between.

    Never falling whatever the values, so that samplers which know nothing of order can be used; n_hat is its place
    among the choices, which is a number to them.
    """

    space: SearchSpace
    knots: int = 6

    @property
    def _places(self) -> np.ndarray:
        return np.linspace(0, self.space.pairs - 1, self.knots)

    def distributions(self) -> dict[str, Distribution]:
        highest = math.log(self.space.upper)
        return {
            **{f"rise_{knot}": FloatDistribution(0.0, highest) for knot in range(self.knots)},
            "n_hat_place": IntDistribution(0, len(self.space.n_hats) - 1),
            "attention_factor": _attention_factor(self.space),
        }

    def point(self, params: Params) -> RopeScaling:
        logs = np.cumsum([params[f"rise_{knot}"] for knot in range(self.knots)])
        factors = np.exp(np.interp(np.arange(self.space.pairs), self._places, logs))
        return self.space.point(factors, self.space.n_hats[int(params["n_hat_place"])], params["attention_factor"])

    def params(self, scaling: RopeScaling) -> Params:
        logs = np.interp(self._places, np.arange(self.space.pairs), np.log(scaling.factors))
        rises = np.clip(np.diff(logs, prepend=0.0), 0.0, math.log(self.space.upper))
        nearest = self.space.nearest(scaling)
        return {
            **{f"rise_{knot}": float(rise) for knot, rise in enumerate(rises)},
            "n_hat_place": self.space.n_hats.index(nearest.n_hat),
            "attention_factor": nearest.attention_factor,
        }
