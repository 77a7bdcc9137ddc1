"""The LightningDataModule: segments of one length from the training split, in an order that resumes exactly."""

from collections.abc import Iterator
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from ropewalk.config import FinetuneStepConfig
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.corpus.store import TokenStore


class _Microbatches(IterableDataset[Rows]):
    """The rows of each optimizer step, ``rows_at_once`` at a time.

    Its length counts from step 0 also when it starts later, as Lightning's loop does after a resume.
    """

    def __init__(self, segments: Segments, rows_at_once: int) -> None:
        self.segments, self.rows_at_once = segments, rows_at_once

    def __len__(self) -> int:
        return self.segments.steps * (self.segments.rows // self.rows_at_once)

    def __iter__(self) -> Iterator[Rows]:
        for rows in self.segments:
            yield from map(Rows, *(part.split(self.rows_at_once) for part in rows))


class SegmentData(L.LightningDataModule):
    """Rows (rows_at_once, length) of BOS, a segment of one document or a recall document, EOS."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Any,
        step: FinetuneStepConfig,
        *,
        recall_share: float,
        rows_at_once: int,
        seed: int,
        first_step: int,
    ) -> None:
        super().__init__()
        self.rows_at_once = min(rows_at_once, step.rows)
        self.segments = Segments(
            store,
            length=step.length,
            rows=step.rows,
            steps=step.steps,
            seed=seed,
            tokenizer=tokenizer,
            recall_share=recall_share,
            first_step=first_step,
        )

    @property
    def accumulate(self) -> int:
        """Microbatches in an optimizer step."""
        return self.segments.rows // self.rows_at_once

    def train_dataloader(self) -> DataLoader[Rows]:
        return DataLoader(_Microbatches(self.segments, self.rows_at_once), batch_size=None)
