"""Segments: training rows of one length, cut from documents; the rows of a step depend on seed and step alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

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
    """(rows, length) bool: whether a token of a recall row belongs to an answer."""


@dataclass(frozen=True)
class _Starts:
    """Where segments can begin: all places of some documents, each as likely."""

    documents: np.ndarray
    """Indices of the documents in the store."""
    cumulative: np.ndarray
    """Number of places in each document and those before it."""

    @classmethod
    def of(cls, store: TokenStore, tokens: int, subsets: Sequence[str], *, joined: bool = True) -> Self:
        """The places that ``tokens`` tokens follow, with or without documents that were joined from short ones."""
        documents = store.of_subsets(store.long_documents(tokens), subsets)
        if not joined:
            documents = documents[~store.joined[documents]]
        if not len(documents):
            raise ValueError(
                f"no {'' if joined else 'single '}document of {store.path} has {tokens} tokens (the longest has "
                f"{store.longest}); lower the length or add longer documents"
            )
        return cls(documents, np.cumsum(store.lengths_of(documents) - tokens + 1))

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Index of a document, and a place in it."""
        place = int(rng.integers(self.cumulative[-1]))
        which = int(np.searchsorted(self.cumulative, place, side="right"))
        return int(self.documents[which]), place - (int(self.cumulative[which - 1]) if which else 0)


class Segments(IterableDataset[Rows]):
    """The rows of all steps.

    The rows of a step are a function of (seed, step), so that a run resumes exactly where it stopped.

    Args:
        length: number of tokens in a row, BOS and EOS included.
        batch_size: number of rows in a step.
        recall_share: expected share of rows that are recall documents.
        practice_steps: the argument of `practice_row`, for a model trained from scratch; 0 for no practice rows.
        first_step: the step to resume from.
        across_documents: whether a segment may continue in the documents that follow in the store, with EOS and BOS
            between them; then documents of every length are used, and all tokens are equally likely.
        long_document_share: expected share of segments that are cut from a document as long as the segment which was
            not joined from short ones, however few of the tokens such documents hold (length upsampling, Fu et al.,
            arXiv 2402.10171; ProLong, arXiv 2410.02660, section 3, trains on 60 % long and 40 % short documents).
        subsets: subsets whose documents are used; all if empty.

    Raises:
        ValueError: no document is long enough, or the store has no such subset.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        tokenizer: Any = None,
        recall_share: float = 0.0,
        practice_steps: int = 0,
        first_step: int = 0,
        across_documents: bool = False,
        long_document_share: float = 0.0,
        subsets: Sequence[str] = (),
    ) -> None:
        self.store, self.length, self.batch_size, self.steps, self.seed = store, length, batch_size, steps, seed
        self.tokenizer, self.recall_share, self.first_step = tokenizer, recall_share, first_step
        self.practice_steps = practice_steps
        self._inside = length - 2
        self._long_document_share = long_document_share
        self._starts = self._long_starts = None
        if across_documents and len(store.tokens) < self._inside:
            raise ValueError(
                f"{store.path} has {len(store.tokens)} tokens in all, {self._inside} are needed; lower the length "
                "or add documents"
            )
        if not across_documents:
            self._starts = _Starts.of(store, self._inside, subsets)
        if long_document_share:
            self._long_starts = _Starts.of(store, self._inside, subsets, joined=False)

    def __len__(self) -> int:
        """Number of steps from step 0, even if ``first_step`` is later, as Lightning's loop counts after a resume."""
        return self.steps

    def step(self, step: int) -> Rows:
        """The rows of a step."""
        rng = np.random.default_rng((self.seed, self.length, step))
        batch = np.empty((self.batch_size, self.length), np.int64)
        answers = np.zeros(batch.shape, np.bool_)
        batch[:, 0], batch[:, -1] = self.store.bos, self.store.eos
        for row, answer in zip(batch, answers, strict=True):
            segment: np.ndarray | list[int] = self._segment(rng)
            practice = self._practice(step, rng)
            if practice is not None:
                segment = practice
            elif rng.random() < self.recall_share:
                segment, answer[1:-1] = recall_row(
                    rng, code=np.asarray(segment), length=self.length - 2, tokenizer=self.tokenizer
                )
            row[1:-1] = segment
        return Rows(torch.from_numpy(batch), torch.from_numpy(answers))

    def _segment(self, rng: np.random.Generator) -> np.ndarray:
        """A random segment: of one long document, of any document that is long enough, or across documents."""
        starts = self._starts
        if self._long_starts is not None and rng.random() < self._long_document_share:
            starts = self._long_starts
        if starts is None:
            return self._across_segment(rng)
        document, start = starts.draw(rng)
        return self.store.document(document)[start : start + self._inside]

    def _across_segment(self, rng: np.random.Generator) -> np.ndarray:
        """A random segment across documents; they follow each other in the store, so this is a single read."""
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
        # A DataLoader takes one item from each worker in turn, so the order does not depend on their number.
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.first_step + index, self.steps, workers):
            yield self.step(step)
