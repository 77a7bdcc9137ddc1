"""The loss of a batch, for one process and for many.

Every process computes the loss of its own shard, scaled so that the mean over processes is the loss of the whole batch:
gradients that are averaged as DDP and FSDP do are those of a single process that reads everything.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.corpus.segments import Rows
from ropewalk.finetune.long_context import short_context_losses, token_weights
from ropewalk.finetune.shard import Shard
from ropewalk.finetune.windows import MixedRows, into_windows, original_rope, packed_targets
from ropewalk.models.loss import losses_of, targets_of

POSITIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Ends of the position buckets, as fractions of the row."""


@dataclass(frozen=True)
class BatchLoss:
    """Losses in nats of all processes' rows."""

    loss: Tensor
    """Mean over all tokens plus the weighted loss of the answers; with gradient."""
    answer_loss: Tensor | None
    """Mean loss of the answers of each recall document, averaged over these documents; None in a batch without any."""
    by_position: dict[str, tuple[float, int]]
    """Sum of the losses and number of tokens of long rows in each bucket of positions, by its name (``loss_to_0.5``);
    empty unless asked for."""


@dataclass(frozen=True)
class _Pass:
    """A forward pass of this process over its part of some rows."""

    states: Tensor
    """(rows, tokens, hidden)."""
    targets: Tensor
    """(rows, tokens): the token that each state predicts, -100 for none."""

    @property
    def count(self) -> Tensor:
        """Number of targets."""
        return (self.targets != -100).sum()

    def mean_loss(self, model: PreTrainedModel) -> Tensor:
        """Mean over the targets, 0 where there are none; with gradient."""
        if not self.count:
            return self.states.sum() * 0
        return losses_of(model, self.states, self.targets, "mean")


def batch_loss(
    model: PreTrainedModel,
    batch: Rows | MixedRows,
    *,
    shard: Shard | None = None,
    window: int = 0,
    answer_weight: float = 0.0,
    long_context_weight: float | None = None,
    by_position: bool = False,
) -> BatchLoss:
    """Loss of ``batch`` under the model's current scaling, of its short rows under the original RoPE.

    Several processes take the same passes whatever their rows, because weights that are split over them are gathered in
    each pass, and learned factors need a gradient everywhere.

    Args:
        batch: the rows of all processes together.
        shard: the part that this process reads; everything by default.
        window: tokens of the original window; no packed document crosses a multiple of it.
        answer_weight: weight of the recall documents' answers, which are left out at 0.
        long_context_weight: largest weight of a token of a long row (`ropewalk.finetune.long_context`); None for the
            same weight of all tokens.
        by_position: also return the loss by position, at the cost of one more product with the output matrix.

    Raises:
        ValueError: the number of rows is not a multiple of the number of groups of processes.
    """
    shard = shard or Shard()
    if isinstance(batch, MixedRows):
        tokens, positions, short, answers = batch.tokens, batch.positions, batch.short, batch.answers
    else:
        tokens, positions, short, answers = batch.ids, None, None, batch.answers
    # Every row ends with the store's EOS, which need not be the one that the model's config names.
    targets = targets_of(tokens, ignore=int(tokens[0, -1]))
    if short is not None and positions is not None:
        targets = torch.where(short[:, None], packed_targets(tokens, positions), targets)
    count = (targets != -100).sum() / shard.world
    answer_rows = answers[:, 1:].any(dim=1).sum() / shard.world if answer_weight else torch.zeros(())
    tokens, targets, answers = map(shard.rows, (tokens, targets, answers))
    if short is not None and positions is not None:
        short, positions = map(shard.rows, (short, positions))
    long, answer_loss, means, counts = None, None, [], []
    if short is None or shard.world > 1 or not short.all():
        if short is not None:
            rows, row_targets, answers = _rows_where(~short, tokens, targets, answers, shard=shard)
        else:
            rows, row_targets = tokens, targets
        long = _Pass(shard.states(model, rows), shard.slice_targets(row_targets))
        if answer_rows:
            answer_loss = shard.mean(_answer_loss(model, long, answers, answer_rows, shard))
        if long_context_weight is None or not 0 < window < tokens.shape[1]:
            means.append(long.mean_loss(model))
        else:
            mixed = short is not None
            means.append(_long_context_loss(model, long, rows, window=window, most=long_context_weight, mixed=mixed))
        counts.append(long.count)
    if short is not None and positions is not None and (shard.world > 1 or short.any()):
        rows, row_targets, positions = _rows_where(short, tokens, targets, positions, shard=shard)
        if shard.slices.count == 1 and short.any():
            rows, positions = into_windows(rows, window), into_windows(positions, window)
            row_targets = packed_targets(rows, positions)
        with original_rope(model):
            packed = _Pass(shard.states(model, rows, positions=positions), shard.slice_targets(row_targets))
            means.append(packed.mean_loss(model))
            counts.append(packed.count)
    if short is None:
        loss = means[0] * (counts[0] / count)
    else:
        loss = torch.stack([mean * part for mean, part in zip(means, counts, strict=True)]).sum() / count
    loss = shard.mean(loss)
    if answer_loss is not None:
        loss = loss + answer_weight * answer_loss
    buckets = _by_position(model, long, shard) if by_position and long is not None else {}
    return BatchLoss(loss, answer_loss, buckets)


def _long_context_loss(
    model: PreTrainedModel, long: _Pass, rows: Tensor, *, window: int, most: float, mixed: bool
) -> Tensor:
    """Mean over the targets of long ``rows`` of their losses times `token_weights`, with gradient."""
    with torch.no_grad(), original_rope(model) if mixed else nullcontext():
        short = short_context_losses(model, rows, window=window)
    if not long.count:
        return long.states.sum() * 0
    losses = losses_of(model, long.states, long.targets, "none").view(long.targets.shape)
    weights = token_weights(losses.detach(), short, most=most)
    return (weights * losses).sum() / long.count


def _rows_where(
    chosen: Tensor, tokens: Tensor, targets: Tensor, values: Tensor, *, shard: Shard
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen rows of each tensor; if there are none, a row of one token for each piece, without a target."""
    if chosen.any():
        return tokens[chosen], targets[chosen], values[chosen]
    length = 2 * shard.slices.count
    return tokens[:1, :length], torch.full_like(targets[:1, : length - 1], -100), values[:1, :length]


def _answer_loss(model: PreTrainedModel, long: _Pass, answers: Tensor, answer_rows: Tensor, shard: Shard) -> Tensor:
    """This process's part of the mean over rows of each row's mean loss of answers, with gradient.

    Args:
        answers: (rows, length) bool, whether a token is one of an answer.
        answer_rows: number of rows of all processes that have an answer, divided by the number of processes.
    """
    chosen = shard.slice_targets(answers[:, 1:], fill=0)
    if not chosen.any():
        # This process still takes part in the sum over all.
        return long.states.sum() * 0
    weights = (1 / answers[:, 1:].sum(dim=1))[:, None].expand(chosen.shape)[chosen] / answer_rows
    losses = losses_of(model, long.states[chosen].unsqueeze(0), long.targets[chosen], "none")
    return losses.flatten() @ weights


@torch.no_grad()
def _by_position(model: PreTrainedModel, long: _Pass, shard: Shard) -> dict[str, tuple[float, int]]:
    losses = losses_of(model, long.states, long.targets, "none").view(long.targets.shape)
    length = long.targets.shape[1] * shard.slices.count + (shard.slices.count == 1)
    positions = shard.slice_targets(torch.arange(length - 1, device=losses.device)[None], fill=length)[0]
    ends = [round(fraction * length) - 1 for fraction in POSITIONS]
    sums = []
    for start, end in zip((0, *ends), ends, strict=False):
        in_bucket = (positions >= start) & (positions < end)
        is_target = long.targets[:, in_bucket] != -100
        sums.append(
            torch.stack((losses[:, in_bucket].masked_fill(~is_target, 0).sum().double(), is_target.sum().double()))
        )
    totals = torch.stack(sums)
    if shard.world > 1:
        dist.all_reduce(totals)
    return {
        f"loss_to_{fraction:g}": (total, int(count))
        for fraction, (total, count) in zip(POSITIONS, totals.tolist(), strict=True)
    }
