"""Search space: monotone rescale factors, n_hat and the attention factor as one point, and as Optuna's parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ropewalk.rope import RopeScaling, methods
from ropewalk.rope.ramps import critical_pair

Params = dict[str, Any]
Distribution = FloatDistribution | IntDistribution | CategoricalDistribution

N_HATS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""LongRoPE's choices (paper Table 2)."""


@dataclass(frozen=True)
class SearchSpace:
    """lambda_i in [1, upper], in steps of ``step``, non-decreasing in i (paper §3.2)."""

    rotary_dim: int
    base: float
    original_length: int
    """Window that the factors start from: L0, or the extended window for a second search."""
    target_length: int
    upper: float
    """Largest lambda; the paper's is 1.25 * s."""
    step: float = 0.0001
    """The paper's is 0.01."""
    n_hats: tuple[int, ...] = N_HATS
    attention_factors: tuple[float, float] = (0.9, 1.6)
    """Lowest and highest; equal values fix it."""
    query_scales: tuple[tuple[float, ...], ...] | None = None
    """Query scales of every point."""

    @property
    def pairs(self) -> int:
        return self.rotary_dim // 2

    def point(self, factors: np.ndarray, n_hat: int, attention_factor: float) -> RopeScaling:
        """The nearest point of the space: factors clipped, made non-decreasing and rounded to the step."""
        steps = np.floor((np.clip(factors, 1.0, self.upper) - 1.0) / self.step + 0.5)
        steps = np.minimum(np.maximum.accumulate(steps), np.floor((self.upper - 1.0) / self.step + 1e-9))
        rounded = np.round(1.0 + steps * self.step, 10)
        low, high = self.attention_factors
        return RopeScaling(
            tuple(rounded.tolist()),
            self.original_length,
            self.target_length,
            n_hat=min(self.n_hats, key=lambda choice: abs(choice - n_hat)),
            # Clipped again: a bound of more than four decimals must not be rounded out of its own range.
            attention_factor=min(max(round(min(max(attention_factor, low), high), 4), low), high),
            query_scales=self.query_scales,
        )

    def nearest(self, scaling: RopeScaling) -> RopeScaling:
        """The nearest point, which keeps the scaling's query scales."""
        point = self.point(np.asarray(scaling.factors), scaling.n_hat, scaling.attention_factor)
        return replace(point, method=scaling.method, query_scales=scaling.query_scales or self.query_scales)

    def published(self) -> list[RopeScaling]:
        """Closed forms that a search begins with; those that have a temperature keep it where t is free.

        PI, NTK-aware and YaRN begin the paper's population; MrRoPE-Pro and TailSpline are at times better than these.
        """
        return [self.apply(methods.METHODS[name]) for name in ("pi", "ntk", "yarn", "mrrope_pro", "tailspline")]

    def start(self) -> RopeScaling:
        """Where a gradient begins: YaRN that keeps every pair of 8 turns and more within the window.

        As a function of the lambda of a pair that turns often, the loss has a valley for every turn that lambda removes
        at a distance of one window. A gradient seldom leaves the valley that it begins in, and that of lambda = 1 is a
        good one.
        """
        return self.apply(methods.yarn, beta_fast=8.0)

    def apply(self, method: Callable[..., RopeScaling], **options: float) -> RopeScaling:
        """The point of the space nearest to what a published method gives."""
        scaling = method(
            rotary_dim=self.rotary_dim,
            base=self.base,
            original_length=self.original_length,
            target_length=self.target_length,
            **options,
        )
        return self.nearest(scaling)


@dataclass(frozen=True)
class CriticalSpace(SearchSpace):
    """LongRoPE2's space: lambda in [s, 2s] from the critical pair up, and below it lambda_critical^(i / critical).

    The critical pair, from half of the theoretical one up to it, is the first whose factor reaches s (LongRoPE2 §3.2).
    """

    @property
    def critical_pairs(self) -> tuple[int, int]:
        """Lowest and highest choice; the highest is the first pair whose period exceeds the window."""
        theoretical = critical_pair(rotary_dim=self.rotary_dim, base=self.base, original_length=self.original_length)
        highest = min(max(theoretical, 1), self.pairs - 1)
        return max(1, highest // 2), highest

    def point(self, factors: np.ndarray, n_hat: int, attention_factor: float) -> RopeScaling:
        ratio = self.target_length / self.original_length
        low, high = self.critical_pairs
        reached = np.flatnonzero(factors >= ratio - self.step / 2)
        critical = int(min(max(reached[0] if len(reached) else high, low), high))
        upper = np.maximum.accumulate(np.clip(factors[critical:], ratio, 2 * ratio))
        lower = upper[0] ** (np.arange(critical) / critical)
        return super().point(np.concatenate([lower, upper]), n_hat, attention_factor)


def factor_params(point: RopeScaling) -> Params:
    """A point by the names of its parameters: lambda_00, lambda_01, …, n_hat and attention_factor."""
    factors = {f"lambda_{pair:02d}": factor for pair, factor in enumerate(point.factors)}
    return {**factors, "n_hat": point.n_hat, "attention_factor": point.attention_factor}


@dataclass(frozen=True)
class FactorEncoding:
    """lambda_00, lambda_01, … are the factors themselves."""

    space: SearchSpace

    def distributions(self) -> dict[str, Distribution]:
        factors = {f"lambda_{pair:02d}": FloatDistribution(1.0, self.space.upper) for pair in range(self.space.pairs)}
        return {
            **factors,
            "n_hat": CategoricalDistribution(self.space.n_hats),
            "attention_factor": FloatDistribution(*self.space.attention_factors),
        }

    def point(self, params: Params) -> RopeScaling:
        factors = tuple(params[f"lambda_{pair:02d}"] for pair in range(self.space.pairs))
        return RopeScaling(
            factors,
            self.space.original_length,
            self.space.target_length,
            int(params["n_hat"]),
            params["attention_factor"],
            query_scales=self.space.query_scales,
        )

    def params(self, scaling: RopeScaling) -> Params:
        return factor_params(scaling)


@dataclass(frozen=True)
class KnotEncoding:
    """rise_0, rise_1, … are how far log lambda rises up to each of a few pairs, with straight lines between them.

    Factors never fall whatever the values, so that samplers which know nothing of order can be used; n_hat is
    represented by its index among the choices, an integer.
    """

    space: SearchSpace
    knots: int = 6

    @property
    def _pairs(self) -> np.ndarray:
        return np.linspace(0, self.space.pairs - 1, self.knots)

    def distributions(self) -> dict[str, Distribution]:
        highest = math.log(self.space.upper)
        return {
            **{f"rise_{knot}": FloatDistribution(0.0, highest) for knot in range(self.knots)},
            "n_hat_place": IntDistribution(0, len(self.space.n_hats) - 1),
            "attention_factor": FloatDistribution(*self.space.attention_factors),
        }

    def point(self, params: Params) -> RopeScaling:
        logs = np.cumsum([params[f"rise_{knot}"] for knot in range(self.knots)])
        factors = np.exp(np.interp(np.arange(self.space.pairs), self._pairs, logs))
        return self.space.point(factors, self.space.n_hats[int(params["n_hat_place"])], params["attention_factor"])

    def params(self, scaling: RopeScaling) -> Params:
        logs = np.interp(self._pairs, np.arange(self.space.pairs), np.log(scaling.factors))
        rises = np.clip(np.diff(logs, prepend=0.0), 0.0, math.log(self.space.upper))
        nearest = self.space.nearest(scaling)
        return {
            **{f"rise_{knot}": float(rise) for knot, rise in enumerate(rises)},
            "n_hat_place": self.space.n_hats.index(nearest.n_hat),
            "attention_factor": nearest.attention_factor,
        }


Encoding = FactorEncoding | KnotEncoding
"""Parameters of Optuna trials that stand for points of a space."""
