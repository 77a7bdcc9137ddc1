"""Packed rows: several short documents in one row, for training within the original window."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.corpus.recall import recall_row
from ropewalk.corpus.store import TokenStore

_SHORTEST = 8
"""Number of tokens of the shortest piece, BOS and EOS included."""


@dataclass(frozen=True)
class PackedRow:
    """Tokens of documents as BOS, text, EOS, and the position of each token in its document; both are (length,)."""

    tokens: Tensor
    positions: Tensor


class Packing:
    """Rows of documents, none of which is longer than ``window`` or crosses a multiple of it.

    A row can thus be read as length / window rows of one window each, so that attention never costs more than within
    the window. A document that fits is taken whole; of a longer one, a random piece is taken.

    Args:
        length: number of tokens in a row, a multiple of ``window``.
        window: the model's original window in tokens.
        recall_share: expected share of windows that hold one recall document.
        subsets: subsets whose documents are used; all if empty.

    Raises:
        ValueError: ``length`` is no multiple of ``window``, or there is no document.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        window: int,
        tokenizer: Any = None,
        recall_share: float = 0.0,
        subsets: tuple[str, ...] = (),
    ) -> None:
        if length % window:
            raise ValueError(f"rows of {length} tokens cannot be cut into windows of {window}; take a multiple")
        self.store, self.length, self.window = store, length, window
        self.tokenizer, self.recall_share = tokenizer, recall_share
        self._documents = store.of_subsets(store.long_documents(_SHORTEST), subsets)
        if not len(self._documents):
            raise ValueError(f"no document of {store.path} has {_SHORTEST} tokens; add longer documents")
        self._cumulative = np.cumsum(store.lengths_of(self._documents))

    def row(self, rng: np.random.Generator) -> PackedRow:
        """Draw a row."""
        tokens, positions = np.empty(self.length, np.int64), np.empty(self.length, np.int64)
        place = 0
        while place < self.length:
            piece = self._piece(rng, self.window - place % self.window)
            end = place + len(piece)
            tokens[place:end], positions[place:end] = piece, np.arange(len(piece))
            place = end
        return PackedRow(torch.from_numpy(tokens), torch.from_numpy(positions))

    def _piece(self, rng: np.random.Generator, room: int) -> np.ndarray:
        """BOS, text, EOS: ``room`` tokens, or so many fewer that the shortest piece fits into the rest."""
        token = int(rng.integers(self._cumulative[-1]))
        which = int(np.searchsorted(self._cumulative, token, side="right"))
        document = self.store.document(int(self._documents[which]))
        if room == self.window and rng.random() < self.recall_share:
            code = np.resize(np.asarray(document), room - 2)
            text = np.asarray(recall_row(rng, code=code, length=room - 2, tokenizer=self.tokenizer)[0])
        else:
            size = min(len(document), room - 2)
            if 0 < room - 2 - size < _SHORTEST:
                size = room - 2 - _SHORTEST
            start = int(rng.integers(len(document) - size + 1))
            text = np.asarray(document[start : start + size])
        return np.concatenate(([self.store.bos], text, [self.store.eos]))
