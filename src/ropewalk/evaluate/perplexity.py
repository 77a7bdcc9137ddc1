"""Perplexity in one pass over the first N tokens of test documents, for any scaling and several N at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk.corpus.store import TokenStore
from ropewalk.models.loss import token_losses
from ropewalk.rope import RopeScaling, extend

PROTOCOL = "one pass over BOS and the first N-1 tokens of each document, mean over all predicted tokens"
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class DocumentSet:
    """The same documents at every length, so that lengths can be compared."""

    name: str
    rows: Tensor
    """(documents, longest length) token ids, BOS first."""

    @classmethod
    def of(cls, name: str, store: TokenStore, *, length: int, documents: int | None) -> "DocumentSet":
        """The first ``documents`` (or all) of at least ``length`` tokens; raises ValueError when they are too few."""
        return cls(name, torch.from_numpy(store.first_tokens(length, documents=documents)))

    @property
    def documents(self) -> int:
        return self.rows.shape[0]


@torch.no_grad()
def perplexities(model: Any, scaling: RopeScaling, documents: DocumentSet, lengths: Sequence[int]) -> dict[int, float]:
    """Perplexity over the first N tokens for each N of ``lengths``, all from one pass over the longest.

    The scaling is the same at every position, so what is read after token N changes nothing before it.
    """
    extend(model, scaling)
    longest = max(lengths)
    device = next(model.parameters()).device
    totals = dict.fromkeys(lengths, 0.0)
    for rows in documents.rows[:, :longest].split(max(1, _TOKENS_AT_ONCE // longest)):
        losses = token_losses(model, rows.to(device)).double()
        for length in lengths:
            totals[length] += losses[:, : length - 1].sum().item()
    return {length: _exp(total / (documents.documents * (length - 1))) for length, total in totals.items()}


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
