"""What a rule can read: every key of the configuration, given or not, and facts about the model and the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, NamedTuple

from omegaconf import MISSING

from ropewalk.config import Config
from ropewalk.config.keys import require
from ropewalk.defaults.facts import Facts, device_memory, has_gpu, read_facts

_PROCESSOR_FLOPS = 8e10
"""FLOPs a second that two cores of a server reach in float32; every machine without a GPU is taken to be one."""
_GPU_FLOPS = 2e14
"""FLOPs a second that a GPU reaches where the section plan names none."""


class Default(NamedTuple):
    """A value that follows, and why."""

    value: Any
    reason: str


Rule = Callable[["Known"], Default]


@dataclass(frozen=True)
class Known:
    """A configuration in which keys may be missing, whose values are read as if they were given."""

    config: Config
    rules: Mapping[str, Rule]
    followed: dict[str, Default] = field(default_factory=dict)
    """The values that have followed so far, by dotted key."""

    @cached_property
    def facts(self) -> Facts:
        """Facts about the model; raises ValueError where it is not given, and as `ropewalk.models.base`."""
        require(self.config.model.path != MISSING, "model.path must be given")
        return read_facts(self.config.model)

    @property
    def on_gpu(self) -> bool:
        """Whether the work is for a GPU: one that the section plan names, or else one of this machine."""
        return self.config.plan.tflops is not None or has_gpu()

    def is_given(self, key: str) -> bool:
        """Whether the configuration holds a value for a dotted key."""
        return bool(self._value(key) != MISSING)

    def __getitem__(self, key: str) -> Any:
        """The value of a dotted key; raises ValueError where it is neither given nor follows."""
        if key not in self.followed:
            if self.is_given(key):
                return self._value(key)
            require(key in self.rules, f"{key} must be given")
            self.followed[key] = self.rules[key](self)
        return self.followed[key].value

    def _value(self, key: str) -> Any:
        return reduce(getattr, key.split("."), self.config)

    @property
    def memory(self) -> float:
        """Bytes of memory of the device."""
        return device_memory(self.config.plan.memory_gib, on_gpu=self.on_gpu)

    def pass_seconds(self, length: int) -> float:
        """Rough seconds of a forward pass over ``length`` tokens on the device."""
        plan = self.config.plan
        rate = _PROCESSOR_FLOPS
        if self.on_gpu:
            rate = plan.tflops * 1e12 * plan.efficiency if plan.tflops else _GPU_FLOPS
        return self.facts.forward_flops(length) / rate
