"""Segments: training rows of one length, cut from single documents, in an order that depends on seed and step only."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ropewalk.corpus.practice import practice_row
from ropewalk.corpus.recall import recall_row
from ropewalk.corpus.store import TokenStore


class Rows(NamedTuple):
    """Rows of one length."""

    ids: torch.Tensor
    """(rows, length) int64: BOS, a segment of a document or a recall row, EOS."""
    answers: torch.Tensor
    """(rows, length) bool: the tokens of recall rows that answer a question."""


class Segments(IterableDataset[Rows]):
    """The rows of each step.

    The rows of a step are a function of (seed, step) alone, so a run goes on exactly where it stopped.

    Args:
        length: tokens in a row, BOS and EOS included.
        recall_share: expected share of rows that are recall documents.
        practice_steps: what `practice_row` says, for a model trained from nothing; 0 for no practice rows.
        first_step: the step to go on from.
        across_documents: whether a segment may go on in the documents that follow in the store, with EOS and BOS
            between them; documents of every length are used then, and each token is as likely.
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
        across_documents: bool = False,
        subsets: Sequence[str] = (),
    ) -> None:
        self.store, self.length, self.rows, self.steps, self.seed = store, length, rows, steps, seed
        self.tokenizer, self.recall_share, self.first_step = tokenizer, recall_share, first_step
        self.practice_steps = practice_steps
        self._inside = length - 2
        self._across = across_documents
        if across_documents:
            if len(store.tokens) < self._inside:
                raise ValueError(
                    f"{store.path} has {len(store.tokens)} tokens in all, {self._inside} are needed; lower the length "
                    "or add documents"
                )
            return
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

    def step(self, step: int) -> Rows:
        rng = np.random.default_rng((self.seed, self.length, step))
        batch = np.empty((self.rows, self.length), np.int64)
        answers = np.zeros(batch.shape, np.bool_)
        batch[:, 0], batch[:, -1] = self.store.bos, self.store.eos
        for row, answer in zip(batch, answers, strict=True):
            segment: np.ndarray | list[int] = self._joined(rng) if self._across else self._of_one(rng)
            practice = self._practice(step, rng)
            if practice is not None:
                segment = practice
            elif rng.random() < self.recall_share:
                segment, answer[1:-1] = recall_row(
                    rng, code=np.asarray(segment), length=self.length - 2, tokenizer=self.tokenizer
                )
            row[1:-1] = segment
        return Rows(torch.from_numpy(batch), torch.from_numpy(answers))

    def _of_one(self, rng: np.random.Generator) -> np.ndarray:
        place = int(rng.integers(self._cumulative[-1]))
        which = int(np.searchsorted(self._cumulative, place, side="right"))
        start = place - (int(self._cumulative[which - 1]) if which else 0)
        return self.store.document(int(self._documents[which]))[start : start + self._inside]

    def _joined(self, rng: np.random.Generator) -> np.ndarray:
        """Documents lie one after the other in the store, so this is one read as well."""
        store, inside = self.store, self._inside
        start = int(rng.integers(len(store.tokens) - inside + 1))
        first, last = np.searchsorted(store.ends, [start, start + inside], side="right")
        ends = np.asarray(store.ends[first:last]) - start
        between = [store.eos] if store.eos == store.bos else [store.eos, store.bos]
        segment = store.tokens[start : start + inside].astype(np.int64)
        ends = ends[(ends > 0) & (ends < inside)]
        return np.insert(segment, np.repeat(ends, len(between)), between * len(ends))[:inside]

    def _practice(self, step: int, rng: np.random.Generator) -> list[int] | None:
        if not self.practice_steps:
            return None
        return practice_row(
            rng, step=step, practice_steps=self.practice_steps, length=self.length - 2, tokenizer=self.tokenizer
        )

    def __iter__(self) -> Iterator[Rows]:
        # A DataLoader takes one item of each of its workers in turn, so the order is the same whatever their number.
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.first_step + own, self.steps, workers):
            yield self.step(step)
