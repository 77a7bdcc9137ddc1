"""This process's share of a training on several devices: which rows it reads, which slice of them, and the loss of all.

Devices come in groups of parallel.context. Each group reads rows of its own and its devices hold a slice of each. The
loss is that of all rows together: every process's gradients, averaged as DDP and FSDP do, are those of one process.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.config import ParallelConfig
from ropewalk.finetune.gathered import NAME, SlicedRows, Slices, documents_of
from ropewalk.models.loss import _losses


@dataclass(frozen=True)
class Share:
    """Of process ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1
    slices: Slices = field(default_factory=lambda: Slices(0, 1))

    @property
    def groups(self) -> int:
        """Groups of devices that read rows of their own."""
        return self.world // self.slices.count

    @property
    def group(self) -> int:
        return self.rank // self.slices.count

    def rows(self, rows: Tensor) -> Tensor:
        """Those of (rows, length) that this process's group reads.

        Raises:
            ValueError: the count does not divide.
        """
        if len(rows) % self.groups:
            raise ValueError(
                f"{len(rows)} rows cannot be shared by {self.groups} groups of devices; "
                f"finetune's rows must be a multiple of {self.groups}"
            )
        return rows.chunk(self.groups)[self.group]

    def summed_loss(
        self, model: PreTrainedModel, tokens: Tensor, targets: Tensor, *, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(sum in nats, count) of this process's part of ``targets``.

        Args:
            tokens: (rows, length), whole rows.
            targets: (rows, length - 1), the token that follows each but the last; -100 for none.
            positions: (rows, length), beginning again at 0 with each document that attention does not leave; None for
                rows of one document.
        """
        following = torch.cat((targets, torch.full_like(targets[:, :1], -100)), dim=1)
        more: dict[str, object] = {} if positions is None else {"position_ids": positions}
        if self.slices.count > 1:
            if positions is None:
                positions, documents = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), None
            else:
                documents = documents_of(positions)
            tokens, following = self.slices.of(tokens), self.slices.of(following)
            more = {"position_ids": self.slices.of(positions), "sliced": SlicedRows(self.slices, documents)}
            if model.config._attn_implementation != NAME:
                model.set_attn_implementation(NAME)
        states = model.base_model(input_ids=tokens, use_cache=False, **more).last_hidden_state
        return _losses(model, states, following, "sum"), (following != -100).sum()

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """The mean loss over all processes' targets; its gradient here is this process's part, times their number."""
        if self.world == 1:
            return total / count
        everywhere = torch.stack((total.detach(), count.to(total.dtype)))
        dist.all_reduce(everywhere)
        own = total * (self.world / everywhere[1])
        return own + (everywhere[0] / everywhere[1] - own).detach()


def share_here(parallel: ParallelConfig) -> Share:
    """This process's share once the process group is there; every process must ask, since groups are made."""
    if not dist.is_initialized():
        return Share()
    world, rank, count = dist.get_world_size(), dist.get_rank(), parallel.context
    if count == 1:
        return Share(rank, world)
    groups = [dist.new_group(list(range(first, first + count))) for first in range(0, world, count)]
    return Share(rank, world, Slices(rank % count, count, groups[rank // count]))
