"""The LightningDataModule: segments of one length from the training split, in an order that resumes exactly."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.corpus.packing import Packing
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.corpus.store import TokenStore
from ropewalk.finetune.windows import MixedRows, is_short


class _Microbatches(IterableDataset[Any]):
    """The rows of each optimizer step, ``micro_batch_size`` at a time, as Rows, or as MixedRows with packed documents.

    The length counts from step 0 even if iteration starts later, as Lightning's loop does after a resume.
    """

    def __init__(self, segments: Segments, micro_batch_size: int, packing: Packing | None, short_share: float) -> None:
        self.segments, self.micro_batch_size = segments, micro_batch_size
        self.packing, self.short_share = packing, short_share

    def __len__(self) -> int:
        return self.segments.steps * (self.segments.batch_size // self.micro_batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self.packing is None:
            for rows in self.segments:
                yield from map(Rows, *(part.split(self.micro_batch_size) for part in rows))
            return
        for step in range(self.segments.first_step, self.segments.steps):
            yield from self._mixed(step, self.packing).split(self.micro_batch_size)

    def _mixed(self, step: int, packing: Packing) -> MixedRows:
        """The segments of a step, some of them (the same in every run) replaced by rows of packed documents."""
        tokens, answers = self.segments.step(step)
        positions = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        first = step * len(tokens)
        short = [is_short(first + row, self.short_share) for row in range(len(tokens))]
        # The 1 keeps the random numbers of packed rows apart from those of segments.
        rng = np.random.default_rng((self.segments.seed, self.segments.length, step, 1))
        for row, packed in enumerate(short):
            if packed:
                packed_row = packing.row(rng)
                tokens[row], positions[row], answers[row] = packed_row.tokens, packed_row.positions, False
        return MixedRows(tokens, positions, torch.tensor(short), answers)


class SegmentData(L.LightningDataModule):
    """Rows (micro_batch_size, length) of BOS, a segment of a document or a recall document, and EOS.

    Args:
        micro_batch_size: rows in a forward pass of all processes together.
        first_step: optimizer step to start at.
        window: tokens of the original window, which no document in a packed row exceeds; 0 for no packed rows.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Any,
        step: FinetuneStepConfig,
        config: FinetuneConfig,
        *,
        micro_batch_size: int,
        seed: int,
        first_step: int,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.micro_batch_size = min(micro_batch_size, step.batch_size)
        self.short_share = config.short_share if window else 0.0
        recall = {"tokenizer": tokenizer, "recall_share": config.recall_share}
        self.segments = Segments(
            store,
            length=step.length,
            batch_size=step.batch_size,
            steps=step.steps,
            seed=seed,
            first_step=first_step,
            across_documents=config.across_documents,
            long_document_share=config.long_document_share,
            subsets=step.subsets,
            **recall,
        )
        self.packing = None
        if self.short_share:
            self.packing = Packing(store, length=step.length, window=window, subsets=tuple(step.subsets), **recall)

    @property
    def accumulate(self) -> int:
        """Number of microbatches in an optimizer step."""
        return self.segments.batch_size // self.micro_batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        rows = _Microbatches(self.segments, self.micro_batch_size, self.packing, self.short_share)
        return DataLoader(rows, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, MixedRows):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
