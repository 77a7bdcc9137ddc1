"""Mixed windows (LongRoPE2): long rows under the rescaled RoPE and short packed rows under the original one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropewalk.models.loss import answer_loss, hidden_states, mean_loss_of, target_losses, targets_of
from ropewalk.rope import RotaryEmbedding, find_rotary


@dataclass(frozen=True)
class MixedRows:
    """(rows, length) tokens with the position of each in its document, rows that are short ones packed, and answers.

    Only long rows have answers that count on their own.
    """

    tokens: Tensor
    positions: Tensor
    short: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, rows: int) -> Iterator["MixedRows"]:
        for part in zip(*(whole.split(rows) for whole in vars(self).values()), strict=True):
            yield MixedRows(*part)

    def to(self, device: Any, **more: Any) -> "MixedRows":
        return MixedRows(*(part.to(device, **more) for part in vars(self).values()))


def is_short(number: int, share: float) -> bool:
    """Whether the row of this number, counted over the whole training, is a short one: evenly spread, no chance."""
    return floor((number + 1) * share) > floor(number * share)


@contextmanager
def original_rope(model: nn.Module) -> Iterator[None]:
    """Rotate by the model's own frequencies meanwhile, without factors, n_hat or attention factor."""
    _, rotary = find_rotary(model)
    if not isinstance(rotary, RotaryEmbedding):
        yield
        return
    kept = rotary.factors, rotary.attention_factor, rotary.n_hat
    rotary.factors, rotary.n_hat = torch.ones_like(rotary.inv_freq), 0
    rotary.attention_factor = torch.ones_like(rotary.inv_freq[0])
    try:
        yield
    finally:
        rotary.factors, rotary.attention_factor, rotary.n_hat = kept


def packed_targets(tokens: Tensor, positions: Tensor) -> Tensor:
    """(rows, length - 1): the next token where it is of the same document and not its EOS, else -100."""
    following = positions[:, 1:]
    last = torch.ones_like(following, dtype=torch.bool)
    last[:, :-1] = positions[:, 2:] == 0
    return torch.where((following == 0) | last, -100, tokens[:, 1:])


def in_windows(part: Tensor, window: int) -> Tensor:
    """(rows, length) as (rows * length / window, window)."""
    return part.reshape(-1, window)


@dataclass(frozen=True)
class Reading:
    """A forward pass with what it foretells: hidden states, targets, and the loss with gradient."""

    loss: Tensor
    states: Tensor
    targets: Tensor
    answer_loss: Tensor | None = None
    """Of recall documents, with gradient."""


def read_long(model: PreTrainedModel, rows: Tensor, answers: Tensor | None = None) -> Reading:
    """Rows of one document each, under the model's current scaling; ``answers`` as of `answer_loss`, None for none."""
    # Every row ends with the store's EOS, which need not be the one that the model's config names.
    targets = targets_of(rows, ignore=int(rows[0, -1]))
    states = hidden_states(model, rows)
    of_answers = None if answers is None else answer_loss(model, states, targets, answers)
    return Reading(mean_loss_of(model, states, targets), states.detach(), targets, of_answers)


def read_packed(model: PreTrainedModel, tokens: Tensor, positions: Tensor, *, window: int) -> Reading:
    """Rows of packed documents, none across a multiple of ``window``, under the model's current scaling."""
    tokens, positions = in_windows(tokens, window), in_windows(positions, window)
    targets = packed_targets(tokens, positions)
    states = hidden_states(model, tokens, position_ids=positions)
    return Reading(mean_loss_of(model, states, targets), states.detach(), targets)


def read_mixed(model: PreTrainedModel, rows: MixedRows, *, window: int) -> tuple[Tensor, Reading | None]:
    """Mean loss over all tokens of both kinds of rows, and the long rows' reading where there are any."""
    parts = []
    long = None
    if not bool(rows.short.all()):
        long = read_long(model, rows.tokens[~rows.short], rows.answers[~rows.short])
        parts.append(long)
    if bool(rows.short.any()):
        with original_rope(model):
            parts.append(read_packed(model, rows.tokens[rows.short], rows.positions[rows.short], window=window))
    counts = [(part.targets != -100).sum() for part in parts]
    total = torch.stack([part.loss * count for part, count in zip(parts, counts, strict=True)]).sum()
    return total / torch.stack(counts).sum(), long


POSITIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Ends of the position buckets, as shares of the row."""


def loss_by_position(model: PreTrainedModel, reading: Reading) -> dict[str, tuple[float, int]]:
    """Sum of the losses and count of the tokens in each bucket of positions, by the bucket's name."""
    losses, wanted = target_losses(model, reading.states, reading.targets), reading.targets != -100
    length = losses.shape[1] + 1
    found, start = {}, 0
    for share in POSITIONS:
        end = round(share * length) - 1
        own = wanted[:, start:end]
        total = losses[:, start:end].masked_fill(~own, 0).sum()
        found[f"loss_to_{share:g}"] = (float(total), int(own.sum()))
        start = end
    return found
