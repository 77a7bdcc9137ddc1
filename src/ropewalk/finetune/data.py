"""The LightningDataModule: segments of one length from the training split, in an order that resumes exactly."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ropewalk.config import FinetuneStepConfig
from ropewalk.corpus.packing import Packing
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.corpus.store import TokenStore
from ropewalk.finetune.windows import MixedRows, is_short

_PACKED = 1
"""Keeps the random numbers of packed rows apart from those of segments."""


class _Microbatches(IterableDataset[Any]):
    """The rows of each optimizer step, ``rows_at_once`` at a time: Rows, or MixedRows where some rows are packed.

    Its length counts from step 0 also when it starts later, as Lightning's loop does after a resume.
    """

    def __init__(
        self, segments: Segments, rows_at_once: int, *, packing: Packing | None = None, short_share: float = 0.0
    ) -> None:
        self.segments, self.rows_at_once = segments, rows_at_once
        self.packing, self.short_share = packing, short_share

    def __len__(self) -> int:
        return self.segments.steps * (self.segments.rows // self.rows_at_once)

    def __iter__(self) -> Iterator[Any]:
        if self.packing is None:
            for rows in self.segments:
                yield from map(Rows, *(part.split(self.rows_at_once) for part in rows))
            return
        for step in range(self.segments.first_step, self.segments.steps):
            yield from self._mixed(step, self.packing).split(self.rows_at_once)

    def _mixed(self, step: int, packing: Packing) -> MixedRows:
        """The segments of a step with some rows, the same in every run, in exchange for packed ones."""
        tokens, answers = self.segments.step(step)
        positions = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        first = step * len(tokens)
        short = [is_short(first + row, self.short_share) for row in range(len(tokens))]
        rng = np.random.default_rng((self.segments.seed, self.segments.length, step, _PACKED))
        for row, packed in enumerate(short):
            if packed:
                made = packing.row(rng)
                tokens[row], positions[row], answers[row] = made.tokens, made.positions, False
        return MixedRows(tokens, positions, torch.tensor(short), answers)


class SegmentData(L.LightningDataModule):
    """Rows (rows_at_once, length) of BOS, a segment of one document or a recall document, EOS.

    Args:
        short_share: share of rows that are packed documents of the original window in place of it ...
        window: ... of so many tokens.
    """

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
        across_documents: bool = False,
        short_share: float = 0.0,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.rows_at_once = min(rows_at_once, step.rows)
        self.short_share = short_share
        self.segments = Segments(
            store,
            length=step.length,
            rows=step.rows,
            steps=step.steps,
            seed=seed,
            tokenizer=tokenizer,
            recall_share=recall_share,
            first_step=first_step,
            across_documents=across_documents,
            subsets=step.subsets,
        )
        self.packing = None
        if short_share:
            self.packing = Packing(
                store,
                length=step.length,
                window=window,
                tokenizer=tokenizer,
                recall_share=recall_share,
                subsets=tuple(step.subsets),
            )

    @property
    def accumulate(self) -> int:
        """Microbatches in an optimizer step."""
        return self.segments.rows // self.rows_at_once

    def train_dataloader(self) -> DataLoader[Any]:
        rows = _Microbatches(self.segments, self.rows_at_once, packing=self.packing, short_share=self.short_share)
        return DataLoader(rows, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, MixedRows):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
