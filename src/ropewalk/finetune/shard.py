"""The part of every batch that a process reads in a training on several devices.

Devices come in groups of parallel.context. Each group reads rows of its own, and each device of a group holds a slice
of every row of the group.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.config import ParallelConfig
from ropewalk.finetune.gathered import NAME, SlicedRows, Slices, check_layers, documents_of
from ropewalk.models.head import base_model
from ropewalk.models.loss import hidden_states


@dataclass(frozen=True)
class Shard:
    """What process ``rank`` of ``world`` processes reads; by default there is one process, which reads everything."""

    rank: int = 0
    world: int = 1
    slices: Slices = field(default_factory=lambda: Slices(0, 1))

    def rows(self, rows: Tensor) -> Tensor:
        """The rows of a batch (rows, ...) for this process's group; raises ValueError if groups cannot share them."""
        groups = self.world // self.slices.count
        if len(rows) % groups:
            raise ValueError(
                f"{len(rows)} rows cannot be shared by {groups} groups of devices; "
                f"finetune's rows must be a multiple of {groups}"
            )
        return rows.chunk(groups)[self.rank // self.slices.count]

    def slice_targets(self, targets: Tensor, *, fill: int = -100) -> Tensor:
        """The entries of ``targets`` (rows, length - 1) that belong to `states`, with ``fill`` for the last token."""
        if self.slices.count == 1:
            return targets
        return self.slices.of(torch.cat((targets, torch.full_like(targets[:, :1], fill)), dim=1))

    def states(self, model: PreTrainedModel, tokens: Tensor, *, positions: Tensor | None = None) -> Tensor:
        """(rows, length - 1, hidden) states of all tokens but the last, or (rows, length / slices, hidden) of a slice.

        Args:
            tokens: (rows, length), whole rows.
            positions: (rows, length), beginning again at 0 with each document, which attention does not leave; None for
                rows of one document each.
        """
        if self.slices.count == 1:
            return hidden_states(model, tokens, position_ids=positions)[:, :-1]
        documents = None if positions is None else documents_of(positions)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if model.config._attn_implementation != NAME:
            check_layers(model)
            model.set_attn_implementation(NAME)
        states: Tensor = base_model(model)(
            input_ids=self.slices.of(tokens),
            position_ids=self.slices.of(positions),
            sliced=SlicedRows(self.slices, documents),
            use_cache=False,
        ).last_hidden_state
        return states

    def mean(self, value: Tensor) -> Tensor:
        """The mean of all processes' ``value``, with the gradient of this process's."""
        if self.world == 1:
            return value
        mean = value.detach().clone()
        dist.all_reduce(mean)
        return value + (mean / self.world - value.detach())


def shard_of_this_process(parallel: ParallelConfig) -> Shard:
    """The shard of this process once the process group exists; every process must call it, since it makes groups."""
    if not dist.is_initialized():
        return Shard()
    world, rank, count = dist.get_world_size(), dist.get_rank(), parallel.context
    if count == 1:
        return Shard(rank, world)
    groups = [dist.new_group(list(range(first, first + count))) for first in range(0, world, count)]
    return Shard(rank, world, Slices(rank % count, count, groups[rank // count], parallel.attention))


def check_same_training(state_folder: Path) -> None:
    """Raise ValueError unless all processes train alike; every process must call it.

    Args:
        state_folder: folder of the training's state, whose last two parts name its settings and inputs, by a hash, and
            its step of the schedule.
    """
    if not dist.is_initialized():
        return
    name = "/".join(state_folder.parts[-2:])
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, name)
    if others := [rank for rank, other in enumerate(names) if other != names[0]]:
        raise ValueError(
            f"the processes of a training must have the same settings and inputs, found {names[0]} for process 0 and "
            f"{names[others[0]]} for process {others[0]}; give all machines the same overrides and results"
        )
