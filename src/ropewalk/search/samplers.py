"""The samplers that ``search.sampler`` can choose from; a package adds its own as an entry point ``ropewalk.samplers``.

Neither torch nor Optuna is imported before a sampler is made, so that the configuration can read the names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ropewalk.registry import Function, Registry, resolved

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Sampler:
    """A sampler of a search: everything that the configuration and the study need to know of it."""

    name: str
    """Value of `search.sampler`."""
    factory: Function
    """Makes the sampler, called with (encoding, config, seed, first_points).

    ``encoding`` turns points of the space into a trial's parameters and back, ``config`` is the `SearchConfig`, and
    ``first_points`` are the points that are worth reading first.
    """
    encoding: Literal["factors", "knots"] = "factors"
    """Parameters of a trial: every factor itself, or `search.knots` knots with straight lines between them."""

    def make(self, *arguments: Any) -> "BaseSampler":
        sampler: BaseSampler = resolved(self.factory)(*arguments)
        return sampler


_EVOLUTION, _BASELINES = "ropewalk.search.evolution", "ropewalk.search.baseline_samplers"
SAMPLERS = Registry(
    (
        Sampler("evolution", f"{_EVOLUTION}:evolution"),
        Sampler("paper", f"{_EVOLUTION}:paper"),
        Sampler("start_tokens", f"{_EVOLUTION}:start_tokens"),
        Sampler("cmaes", f"{_BASELINES}:cmaes", encoding="knots"),
        Sampler("tpe", f"{_BASELINES}:tpe", encoding="knots"),
        Sampler("random", f"{_BASELINES}:random", encoding="knots"),
    ),
    group="ropewalk.samplers",
)
