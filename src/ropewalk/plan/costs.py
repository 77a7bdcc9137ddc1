"""What the work of an extension costs on a device: FLOPs, memory and time."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ropewalk.config import Config
from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import read_config, shape_of
from ropewalk.costs.work import Memory, Work, flops_of, seconds
from ropewalk.evaluate.models import kept_models
from ropewalk.models.published import empty_model, scaling_of_model, turn_off_sliding_window
from ropewalk.plan.devices import device_of
from ropewalk.plan.extension import Machine, extension_works


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs on a device."""

    work: Work
    flops: float
    memory: Memory
    seconds: float

    @property
    def device_hours(self) -> float:
        return self.seconds * self.work.devices / 3600


class Planner:
    """Counts the work of configurations that share the model and the device.

    Raises:
        ValueError: the model's config cannot be read, the model cannot be extended, or its work cannot be told.
    """

    def __init__(self, config: Config) -> None:
        model = config.model
        model_config = read_config(model.path, **model.trust)
        published = scaling_of_model(empty_model(model_config, **model.trust), original_length=model.original_length)
        if not model.keep_sliding_window:
            turn_off_sliding_window(model_config)
        self._published = replace(published, start=None) if model.start == "plain" else published
        # hf is the name of a config group, not of a model.
        name = Path(model.path).name if model.name == "hf" else model.name
        self.shape = shape_of(model_config, name=name, original_length=model.original_length)
        self.device = device_of(config.plan, model_config)
        table = ActivationTable(model_config, gpu=self.device.gpu)
        self._memory = cache(lambda work: needed(work, self.shape, table))

    @property
    def window(self) -> int:
        """Window in tokens before the extension."""
        start = self._published.start
        return start.lengths[-1] if start else self._published.shape.original_length

    def works(self, config: Config) -> list[Work]:
        precision = config.finetune.precision
        mixed = self.device.mixes if precision == "auto" else "mixed" in precision
        kept = kept_models(self.shape.parameters * getattr(torch, config.model.dtype).itemsize, self.device.memory)
        machine = Machine(gpu=self.device.gpu, mixed=mixed, kept_models=kept)
        return extension_works(config, self._published, machine)

    def memory(self, work: Work) -> Memory:
        """Peak memory of a device, which does not depend on the number of rows or on the names."""
        return self._memory(replace(work, stage="", what="", rows=0))

    def costs(self, config: Config) -> list[Cost]:
        return [self._cost(work) for work in self.works(config)]

    def _cost(self, work: Work) -> Cost:
        flops = flops_of(work, self.shape)
        time = seconds(flops, self.device.rate(work), devices=work.devices)
        return Cost(work, flops.total, self.memory(work), time)
