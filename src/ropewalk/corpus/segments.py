"""Segments: training rows of one length, cut from single documents, in an order that depends on seed and step only."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ropewalk.corpus.practice import practice_row
from ropewalk.corpus.recall import recall_row
from ropewalk.corpus.store import TokenStore


class Segments(IterableDataset[torch.Tensor]):
    """One (rows, length) int64 tensor a step: BOS, a segment of a document or a recall row, EOS.

    The rows of a step are a function of (seed, step) alone, so a run goes on exactly where it stopped.

    Args:
        length: tokens in a row, BOS and EOS included.
        recall_share: expected share of rows that are recall documents.
        practice_steps: what `practice_row` says, for a model trained from nothing; 0 for no practice rows.
        first_step: the step to go on from.
        subsets: those whose documents are read; all by default.

    Raises:
        ValueError: no document is long enough, or the store has no such subset.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        rows: int,
        steps: int,
        seed: int,
        tokenizer: Any = None,
        recall_share: float = 0.0,
        practice_steps: int = 0,
        first_step: int = 0,
        subsets: Sequence[str] = (),
    ) -> None:
        self.store, self.length, self.rows, self.steps, self.seed = store, length, rows, steps, seed
        self.tokenizer, self.recall_share, self.first_step = tokenizer, recall_share, first_step
        self.practice_steps = practice_steps
        self._documents = store.of_subsets(store.long_documents(length - 2), subsets)
        if not len(self._documents):
            raise ValueError(
                f"no document of {store.path} has {length - 2} tokens (the longest has {store.longest}); "
                "lower the length or add longer documents"
            )
        choices = store.lengths_of(self._documents) - (length - 2) + 1
        self._cumulative = np.cumsum(choices)

    def __len__(self) -> int:
        """Counts from step 0 also where ``first_step`` is later, as Lightning's loop does after a resume."""
        return self.steps

    def step(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, self.length, step))
        batch = np.empty((self.rows, self.length), np.int64)
        batch[:, 0], batch[:, -1] = self.store.bos, self.store.eos
        for row in batch:
            place = int(rng.integers(self._cumulative[-1]))
            which = int(np.searchsorted(self._cumulative, place, side="right"))
            start = place - (int(self._cumulative[which - 1]) if which else 0)
            segment: np.ndarray | list[int] = self.store.document(int(self._documents[which]))[
                start : start + self.length - 2
            ]
            practice = self._practice(step, rng)
            if practice is not None:
                segment = practice
            elif rng.random() < self.recall_share:
                segment = recall_row(rng, code=np.asarray(segment), length=self.length - 2, tokenizer=self.tokenizer)
            row[1:-1] = segment
        return torch.from_numpy(batch)

    def _practice(self, step: int, rng: np.random.Generator) -> list[int] | None:
        if not self.practice_steps:
            return None
        return practice_row(
            rng, step=step, practice_steps=self.practice_steps, length=self.length - 2, tokenizer=self.tokenizer
        )

    def __iter__(self) -> Iterator[torch.Tensor]:
        # A DataLoader takes one item of each of its workers in turn, so the order is the same whatever their number.
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.first_step + own, self.steps, workers):
            yield self.step(step)
