"""Perplexity of test documents under any scaling: in one pass over the first N tokens, for several N at once, or in
windows of N tokens that slide over a document. Documents longer than a chunk are read in chunks, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.corpus.store import TokenStore
from ropewalk.models.loss import long_token_losses
from ropewalk.rope import RopeScaling, extend

PROTOCOL = "one pass over BOS and the first N-1 tokens of each document, mean over all predicted tokens"
TOKENS_AT_ONCE = 16_384


def sliding_protocol(length: int, stride: int) -> str:
    """The protocol of `sliding_losses`, in words."""
    return (
        f"windows of {length} tokens, moved by {stride}, over BOS and the first tokens of each document; a token "
        "counts once, in the first window that holds it, mean over all predicted tokens"
    )


@dataclass(frozen=True)
class DocumentSet:
    """The same documents at every length, so that lengths can be compared."""

    name: str
    rows: Tensor
    """(documents, longest length) token ids, BOS first."""
    key_tokens: Tensor | None = None
    """(documents, longest length - 1) whether each predicted token is a key token (`far_context`); None where this is
    not known."""

    @classmethod
    def of(cls, name: str, store: TokenStore, *, length: int, documents: int | None) -> "DocumentSet":
        """The first ``documents`` (or all) of at least ``length`` tokens; raises ValueError where they are too few."""
        wanted = documents or 1
        if len(store.long_documents(length - 1)) < wanted:
            reach = longest_length(store, documents=wanted)
            raise ValueError(
                f"{store.path} holds {len(store.long_documents(length - 1))} documents of at least {length - 1} "
                f"tokens, {wanted} are needed; lengths up to {reach} can be evaluated on so many (the longest has "
                f"{store.longest}): lower the lengths or the number of documents, or add longer documents"
            )
        return cls(name, torch.from_numpy(store.first_tokens(length, documents=documents)))

    @property
    def documents(self) -> int:
        return self.rows.shape[0]

    def split(self, size: int) -> list["DocumentSet"]:
        """Parts of ``size`` documents each, the last one of what is left."""
        key_tokens = [None] * self.documents if self.key_tokens is None else self.key_tokens.split(size)
        return [DocumentSet(self.name, *part) for part in zip(self.rows.split(size), key_tokens, strict=False)]


DocumentSets = tuple[DocumentSet, DocumentSet | None]
"""Documents for the lengths up to the first target, and those for the lengths beyond it, if there are such lengths."""


def longest_length(store: TokenStore, *, documents: int) -> int:
    """The longest length, BOS included, that ``documents`` documents can be read at; 0 where there are fewer."""
    lengths = np.sort(store.lengths)[::-1]
    return int(lengths[documents - 1]) + 1 if len(lengths) >= documents else 0


@dataclass(frozen=True)
class Losses:
    """Losses of a model on each document at one length, in nats per predicted token."""

    means: tuple[float, ...]
    """Mean loss of each document; NaN where the model gave NaN."""
    bins: tuple[tuple[float, ...], ...] = ()
    """For each document, its mean loss in each bin of positions (`position_edges`)."""
    key_losses: tuple[tuple[float, int], ...] = ()
    """For each document, the sum of the losses of its key tokens and their number; empty where they are not known."""

    @property
    def key_tokens(self) -> int:
        return sum(count for _, count in self.key_losses)

    @property
    def key_perplexity(self) -> float | None:
        """exp of the mean loss of the key tokens of all documents (LongPPL); None where there are none."""
        mean = sum(loss for loss, _ in self.key_losses) / self.key_tokens if self.key_tokens else None
        return None if mean is None else math.exp(mean) if mean < 700 else math.inf

    @property
    def perplexity(self) -> float:
        """exp of the mean over documents; infinite where a document's loss is not a number."""
        mean = sum(self.means) / len(self.means)
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def nan_documents(self) -> int:
        return sum(math.isnan(mean) for mean in self.means)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Losses":
        bins, key_losses = (tuple(map(tuple, values.get(name, ()))) for name in ("bins", "key_losses"))
        return cls(tuple(values["means"]), bins, key_losses)

    def joined(self, other: "Losses") -> "Losses":
        return Losses(self.means + other.means, self.bins + other.bins, self.key_losses + other.key_losses)


def position_edges(length: int) -> list[int]:
    """Edges of bins of positions among the ``length - 1`` predicted tokens: 0, 16, 24, 32, 48, 64, … and the end."""
    steps = (16 * 2 ** (number // 2) * (3 if number % 2 else 2) // 2 for number in count())
    return [0, *takewhile(lambda edge: edge < length - 1, steps), length - 1]


@torch.no_grad()
def document_losses(
    model: Any, scaling: RopeScaling, documents: DocumentSet, lengths: Sequence[int], *, chunk: int = TOKENS_AT_ONCE
) -> dict[int, Losses]:
    """Losses over the first N tokens for each N of ``lengths``, all from one pass over the longest.

    The scaling is the same at every position, so what is read after token N changes nothing before it.

    Args:
        chunk: tokens in a forward pass, at most.
    """
    extend(model, scaling)
    longest = max(lengths)
    by_length = {length: Losses(()) for length in lengths}
    for part in documents.split(max(1, chunk // longest)):
        losses = _row_losses(model, part.rows[:, :longest], chunk=chunk)
        for length in lengths:
            by_length[length] = by_length[length].joined(_by_document(losses, length, part.key_tokens))
    shorter = [length for length in lengths if length < longest and by_length[length].nan_documents]
    if shorter:
        # A NaN beyond token N reaches earlier tokens in kernels that multiply it by a weight of zero.
        by_length |= document_losses(model, scaling, documents, shorter, chunk=chunk)
    return by_length


def _row_losses(model: Any, rows: Tensor, *, chunk: int) -> Tensor:
    """(rows, length - 1) losses in float64 on the CPU."""
    rows = rows.to(next(model.parameters()).device)
    return long_token_losses(model, rows, chunk=chunk).double()


@torch.no_grad()
def whole_token_losses(
    model: Any, scaling: RopeScaling, documents: DocumentSet, length: int, *, chunk: int = TOKENS_AT_ONCE
) -> Tensor:
    """(documents, length - 1) losses in nats of each token of the first ``length``, read in one pass."""
    extend(model, scaling)
    parts = documents.rows[:, :length].split(max(1, chunk // length))
    return torch.cat([_row_losses(model, rows, chunk=chunk) for rows in parts])


def _by_document(losses: Tensor, length: int, key_tokens: Tensor | None) -> Losses:
    losses = losses[:, : length - 1]
    bins = [losses[:, low:high].mean(1) for low, high in pairwise(position_edges(length))]
    key_losses: tuple[tuple[float, int], ...] = ()
    if key_tokens is not None:
        is_key = key_tokens[:, : length - 1]
        key_losses = tuple(zip(torch.where(is_key, losses, 0.0).sum(1).tolist(), is_key.sum(1).tolist(), strict=True))
    return Losses(tuple(losses.mean(1).tolist()), tuple(map(tuple, torch.stack(bins, 1).tolist())), key_losses)


def perplexities(
    model: Any, scaling: RopeScaling, documents: DocumentSet, lengths: Sequence[int], *, chunk: int = TOKENS_AT_ONCE
) -> dict[int, float]:
    """Perplexity over the first N tokens for each N of ``lengths``; see `document_losses`."""
    by_length = document_losses(model, scaling, documents, lengths, chunk=chunk)
    return {length: losses.perplexity for length, losses in by_length.items()}


def windows(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first counted token) of each window over ``tokens`` tokens; a window's first is never counted."""
    spans, end = [], 0
    for start in range(0, tokens, stride):
        counted, end = max(end, start + 1), min(start + length, tokens)
        spans.append((start, end, counted))
        if end == tokens:
            break
    return spans


def counted_tokens(tokens: int, length: int, stride: int) -> int:
    """Tokens of a document that `sliding_losses` counts: all but the first, if windows overlap."""
    return sum(end - counted for _, end, counted in windows(tokens, length, stride))


def sliding_losses(
    model: Any,
    scaling: RopeScaling,
    documents: DocumentSet,
    length: int,
    *,
    stride: int,
    chunk: int = TOKENS_AT_ONCE,
) -> Losses:
    """Mean losses of the documents, from `sliding_token_losses`; raises as it does."""
    losses = sliding_token_losses(model, scaling, documents, length, stride=stride, chunk=chunk)
    counted = counted_tokens(documents.rows.shape[1], length, stride)
    return Losses(tuple((losses.sum(1) / counted).tolist()))


@torch.no_grad()
def sliding_token_losses(
    model: Any,
    scaling: RopeScaling,
    documents: DocumentSet,
    length: int,
    *,
    stride: int,
    chunk: int = TOKENS_AT_ONCE,
) -> Tensor:
    """(documents, tokens - 1) losses in nats, each token read after at least ``length - stride`` others where there are
    so many; 0 for tokens that no window counts.

    Positions count from each window's start, and nothing is kept from one window to the next
    (transformers' guide "Perplexity of fixed-length models").

    Raises:
        ValueError: the stride is longer than the window, which would leave tokens out, or below 1.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"the stride must lie between 1 and the window of {length} tokens, found {stride}")
    extend(model, scaling)
    tokens = documents.rows.shape[1]
    document_token_losses = torch.zeros((documents.documents, tokens - 1), dtype=torch.float64)
    for start, end, counted in windows(tokens, length, stride):
        for first in range(0, documents.documents, batch := max(1, chunk // (end - start))):
            losses = _row_losses(model, documents.rows[first : first + batch, start:end], chunk=chunk)
            document_token_losses[first : first + batch, counted - 1 : end - 1] = losses[:, counted - start - 1 :]
    return document_token_losses
