"""Mixed windows (LongRoPE2): long rows under the rescaled RoPE and short packed rows under the original one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.rope import RotaryEmbedding, find_rotary


@dataclass(frozen=True)
class MixedRows:
    """Rows of two kinds: long ones, each of one document, and short documents packed into a row."""

    tokens: Tensor
    """(rows, length)."""
    positions: Tensor
    """(rows, length): the position of each token in its document."""
    short: Tensor
    """(rows,) bool: whether the row is one of packed documents."""
    answers: Tensor
    """(rows, length) bool: whether a token is one of a recall document's answer; in long rows only."""

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, rows: int) -> Iterator["MixedRows"]:
        for tensors in zip(*(tensor.split(rows) for tensor in vars(self).values()), strict=True):
            yield MixedRows(*tensors)

    def to(self, device: Any, **options: Any) -> "MixedRows":
        return MixedRows(*(tensor.to(device, **options) for tensor in vars(self).values()))


def is_short(number: int, fraction: float) -> bool:
    """Whether row ``number`` of the whole training is a short one; ``fraction`` of the rows are, evenly spread."""
    return floor((number + 1) * fraction) > floor(number * fraction)


@contextmanager
def original_rope(model: nn.Module) -> Iterator[None]:
    """Rotate by the model's own frequencies within the body, without factors, n_hat or attention factor."""
    _, rotary = find_rotary(model)
    if not isinstance(rotary, RotaryEmbedding):
        yield
        return
    previous = rotary.factors, rotary.attention_factor, rotary.n_hat
    rotary.factors, rotary.n_hat = torch.ones_like(rotary.inv_freq), 0
    rotary.attention_factor = torch.ones_like(rotary.inv_freq[0])
    try:
        yield
    finally:
        rotary.factors, rotary.attention_factor, rotary.n_hat = previous


def packed_targets(tokens: Tensor, positions: Tensor) -> Tensor:
    """(rows, length - 1): the token that follows each, or -100 where that is another document's or an EOS."""
    following = positions[:, 1:]
    last = torch.ones_like(following, dtype=torch.bool)
    last[:, :-1] = positions[:, 2:] == 0
    return torch.where((following == 0) | last, -100, tokens[:, 1:])


def into_windows(rows: Tensor, window: int) -> Tensor:
    """(rows, length) as (rows * length / window, window)."""
    return rows.reshape(-1, window)
