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
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.gathered import NAME, SlicedRows, Slices, documents_of
from ropewalk.finetune.windows import MixedRows, original_rope, packed_targets
from ropewalk.models.loss import losses_of, targets_of


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
        """(sum in nats, count) of this process's part of ``targets``; arguments as of `states`."""
        states, following = self.states(model, tokens, targets, positions=positions)
        return losses_of(model, states, following, "sum"), (following != -100).sum()

    def summed_answers(
        self, model: PreTrainedModel, states: Tensor, following: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum of the mean loss of each row's answers, count of rows that have any), of this process's part.

        Args:
            states, following: what `states` gave.
            answers: (rows, length) bool, whole rows.
        """
        counts = answers[:, 1:].sum(dim=1, keepdim=True)
        weights = answers[:, 1:] / counts.clamp(min=1)
        weights = self.slices.of(torch.cat((weights, torch.zeros_like(weights[:, :1])), dim=1))
        chosen = weights > 0
        # Where no answer lies here, this process still takes part in the sum of all.
        total = states.sum() * 0
        if chosen.any():
            total = losses_of(model, states[chosen].unsqueeze(0), following[chosen], "none").flatten() @ weights[chosen]
        return total, (counts > 0).sum() / self.slices.count

    def states(
        self, model: PreTrainedModel, tokens: Tensor, targets: Tensor, *, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(rows, own length, hidden) states of this process's slice, and the target that follows each, -100 for none.

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
        return states, following

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """The mean loss over all processes' targets; its gradient here is this process's part, times their number."""
        if self.world == 1:
            return total / count
        everywhere = torch.stack((total.detach(), count.to(total.dtype)))
        dist.all_reduce(everywhere)
        # Of nothing at all, as where no row has answers, the sum is 0 as well.
        count = everywhere[1].clamp(min=torch.finfo(total.dtype).tiny)
        own = total * torch.where(everywhere[1] > 0, self.world / count, 0)
        return own + (everywhere[0] / count - own).detach()


def shared_loss(share: Share, model: PreTrainedModel, batch: Rows | MixedRows, *, answer_weight: float) -> Tensor:
    """The loss of all processes' rows, answers of recall documents counted on their own; see `FinetuneModule`.

    Every process takes the same passes, whatever its rows: weights that are split come together in each pass, and
    learned factors need a gradient everywhere.
    """
    if isinstance(batch, Rows):
        long, answers = map(share.rows, batch)
        # Every row ends with the store's EOS.
        targets, packed = targets_of(long, ignore=int(long[0, -1])), None
    else:
        tokens, positions, short, answers = (share.rows(part) for part in vars(batch).values())
        few = 2 * share.slices.count
        of_long = targets_of(tokens, ignore=int(tokens[0, -1]))
        targets, long, answers = _of_kind(~short, of_long, tokens, answers, few=few)
        packed = _of_kind(short, packed_targets(tokens, positions), tokens, positions, few=few)
    states, following = share.states(model, long, targets)
    sums = [(losses_of(model, states, following, "sum"), (following != -100).sum())]
    if packed is not None:
        of_packed, tokens, positions = packed
        with original_rope(model):
            sums.append(share.summed_loss(model, tokens, of_packed, positions=positions))
    total, count = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
    loss = share.mean(total, count)
    if not answer_weight:
        return loss
    return loss + answer_weight * share.mean(*share.summed_answers(model, states, following, answers))


def _of_kind(chosen: Tensor, targets: Tensor, *parts: Tensor, few: int) -> tuple[Tensor, ...]:
    """The chosen rows of ``targets`` and ``parts``; of no rows, ``few`` tokens of another and no target."""
    if chosen.any():
        return targets[chosen], *(part[chosen] for part in parts)
    return torch.full_like(targets[:1, : few - 1], -100), *(part[:1, :few] for part in parts)


def share_here(parallel: ParallelConfig) -> Share:
    """This process's share once the process group is there; every process must ask, since groups are made."""
    if not dist.is_initialized():
        return Share()
    world, rank, count = dist.get_world_size(), dist.get_rank(), parallel.context
    if count == 1:
        return Share(rank, world)
    groups = [dist.new_group(list(range(first, first + count))) for first in range(0, world, count)]
    return Share(rank, world, Slices(rank % count, count, groups[rank // count], parallel.attention))
