"""Microbatches: the rows of each step in order, from any step on, with recall documents at their share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ropewalk.finetune.data import SegmentData
from tiny_models import VOCABULARY, byte_tokenizer
from tiny_runs import BOS, EOS, FINETUNE, STEP, token_store


def data(
    folder: Path, *, micro_batch_size: int = 2, recall_share: float = 0.0, first_step: int = 0, across: bool = False
) -> SegmentData:
    return SegmentData(
        token_store(folder / "store"),
        byte_tokenizer(),
        replace(STEP, length=256),
        replace(FINETUNE, recall_share=recall_share, across_documents=across),
        micro_batch_size=micro_batch_size,
        seed=3,
        first_step=first_step,
    )


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 100])
def test_microbatches_of_a_step_are_its_rows_in_order(tmp_path: Path, micro_batch_size: int) -> None:
    own = data(tmp_path, micro_batch_size=micro_batch_size)
    found = list(own.train_dataloader())
    assert {len(batch.ids) for batch in found} == {min(micro_batch_size, STEP.batch_size)}
    assert own.accumulate * len(found[0].ids) == STEP.batch_size
    assert len(own.train_dataloader()) == len(found) == STEP.steps * own.accumulate
    for part in (0, 1):
        assert torch.equal(torch.cat([rows[part] for rows in found]), torch.cat([rows[part] for rows in own.segments]))


def test_data_from_a_later_step_are_the_rest_of_the_same_rows(tmp_path: Path) -> None:
    whole, rest = list(data(tmp_path).train_dataloader()), list(data(tmp_path, first_step=6).train_dataloader())
    assert len(rest) == 6
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(rest, whole[12:], strict=True))


def test_rows_go_across_documents_only_where_asked(tmp_path: Path) -> None:
    def crossing(own: SegmentData) -> bool:
        return any(bool((rows.ids[:, 1:-1] == EOS).any()) for rows in own.train_dataloader())

    assert not crossing(data(tmp_path))
    assert crossing(data(tmp_path, across=True))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_recall_documents_come_at_their_share(tmp_path: Path, share: float) -> None:
    """The store's tokens are below 96; the space of a recall document's text is not."""
    batches = list(data(tmp_path, recall_share=share).train_dataloader())
    rows = torch.cat([batch.ids for batch in batches])
    assert (rows[:, 0] == BOS).all()
    assert (rows[:, -1] == EOS).all()
    recalled = (rows >= VOCABULARY).any(1).float().mean().item()
    assert torch.equal(torch.cat([batch.answers for batch in batches]).any(1), (rows >= VOCABULARY).any(1))
    assert abs(recalled - share) < (0.25 if share == 0.5 else 1e-9)
