"""Mixed windows: packed rows are read as their documents alone, under the original RoPE, at their share."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.corpus.packing import Packing
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.data import SegmentData
from ropewalk.finetune.loss import batch_loss
from ropewalk.finetune.windows import MixedRows, is_short, original_rope, packed_targets
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary, rotary_shape
from tiny_models import ROPE_MODELS, WINDOW, byte_tokenizer, loss_rounding, tiny_llama, token_rows
from tiny_runs import BOS, EOS, FINETUNE, SCALING, STEP, token_store, train
from tolerances import relative_error

SIZES = (20, 11, 33, 40, 24)
"""Tokens of the documents in two windows of 64."""


def packed() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """(documents, tokens of one row of them, positions)."""
    documents = [token_rows(size, rows=1) for size in SIZES]
    positions = torch.cat([torch.arange(size) for size in SIZES])[None]
    return documents, torch.cat(documents, 1), positions


def scaling_of(model: Any, n_hat: int) -> RopeScaling:
    pairs = rotary_shape(model).rotary_dim // 2
    return RopeScaling(tuple(1.0 + 2.0 * i / pairs for i in range(pairs)), WINDOW, 4 * WINDOW, n_hat, 1.1)


def read_packed(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Loss of rows of packed documents in windows of 64."""
    short, answers = torch.ones(len(tokens), dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    return batch_loss(model, MixedRows(tokens, positions, short, answers), window=WINDOW).loss


@pytest.fixture
def rescaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows are read under the model's scaling, so that start tokens matter in them too."""
    monkeypatch.setattr("ropewalk.finetune.loss.original_rope", lambda model: nullcontext())


@pytest.mark.usefixtures("rescaled")
@pytest.mark.parametrize("kind", ROPE_MODELS)
@pytest.mark.parametrize("n_hat", [0, 8])
def test_a_packed_row_gives_the_loss_of_its_documents_alone(kind: str, n_hat: int) -> None:
    model = extend(ROPE_MODELS[kind](), scaling_of(ROPE_MODELS[kind](), n_hat))
    documents, tokens, positions = packed()
    # Each document's last token is its EOS, which is not predicted.
    alone = [token_losses(model, document)[:, :-1].flatten() for document in documents]
    expected, tolerance = torch.cat(alone).mean(), loss_rounding(model, tokens.numel())
    assert relative_error(read_packed(model, tokens, positions), expected) < tolerance
    if n_hat == 0:
        # And the start tokens do change what is read.
        extend(model, scaling_of(model, 8))
        assert relative_error(read_packed(model, tokens, positions), expected) > tolerance


@pytest.mark.usefixtures("rescaled")
def test_the_gradient_of_a_packed_row_is_that_of_its_documents_alone() -> None:
    model = extend(tiny_llama(), SCALING)
    documents, tokens, positions = packed()
    read_packed(model, tokens, positions).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.cat([token_losses(model, document)[:, :-1].flatten() for document in documents]).mean().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert relative_error(gradient, parameter.grad) < loss_rounding(model, tokens.numel(), backward=True)


def test_targets_stay_inside_documents() -> None:
    tokens = torch.arange(10, 20)[None]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]])
    assert packed_targets(tokens, positions).tolist() == [[11, 12, -100, -100, 15, -100, -100, 18, -100]]


def test_short_rows_are_read_under_the_original_rope_and_long_ones_under_the_rescaled() -> None:
    model, plain = extend(tiny_llama(), replace(SCALING, n_hat=4)), tiny_llama()
    long = token_rows(2 * WINDOW, rows=3)
    long[:, -1] = EOS
    _, tokens, positions = packed()
    both = MixedRows(
        torch.cat((long[:1], tokens, long[1:])),
        torch.cat((torch.arange(2 * WINDOW).repeat(1, 1), positions, torch.arange(2 * WINDOW).repeat(2, 1))),
        torch.tensor([False, True, False, False]),
        torch.zeros(4, 2 * WINDOW, dtype=torch.bool),
    )
    counts = 3 * (2 * WINDOW - 2), int((packed_targets(tokens, positions) != -100).sum())
    short_loss, long_loss = read_packed(plain, tokens, positions), mean_loss(model, long, ignore=EOS)
    expected, tolerance = (counts[0] * long_loss + counts[1] * short_loss) / sum(counts), loss_rounding(model, 512)
    assert relative_error(batch_loss(model, both, window=WINDOW).loss, expected) < tolerance
    only_long = batch_loss(model, next(iter(both.split(1))), window=WINDOW).loss
    assert relative_error(only_long, mean_loss(model, long[:1], ignore=EOS)) < tolerance


def test_the_scaling_is_back_after_the_original_rope() -> None:
    model = extend(tiny_llama(), replace(SCALING, n_hat=4))
    rotary = find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    plain = tiny_llama()(token_rows(2 * WINDOW)).logits
    with original_rope(model):
        logits = model(token_rows(2 * WINDOW)).logits
    assert relative_error(logits, plain) < loss_rounding(model, 2 * WINDOW)
    assert rotary.n_hat == 4
    assert rotary.factors.tolist() == pytest.approx(SCALING.factors)
    assert float(rotary.attention_factor) == pytest.approx(SCALING.attention_factor)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_short_rows_come_at_their_share_evenly_spread(share: float) -> None:
    short = [is_short(number, share) for number in range(1000)]
    assert abs(sum(short) - 1000 * share) <= 1
    assert all(abs(sum(short[first : first + 10]) - 10 * share) <= 1 for first in range(0, 1000, 10))


@pytest.mark.parametrize("recall_share", [0.0, 1.0])
def test_packed_rows_are_whole_documents_inside_windows(tmp_path: Path, recall_share: float) -> None:
    store = token_store(tmp_path / "store", documents=30, tokens=70)
    packing = Packing(store, length=512, window=256, tokenizer=byte_tokenizer(), recall_share=recall_share)
    row = packing.row(np.random.default_rng(1))
    starts = (row.positions == 0).nonzero().flatten().tolist()
    assert {0, 256} <= set(starts)
    assert (row.tokens[starts] == BOS).all()
    assert (row.tokens[[start - 1 for start in starts[1:]] + [-1]] == EOS).all()
    sizes = np.diff([*starts, 512])
    assert sizes.min() >= 3
    if recall_share:
        assert starts == [0, 256]
    else:
        assert sum(sizes == 72) >= 5
        texts = {tuple(store.document(index).tolist()) for index in range(len(store))}
        assert all(
            tuple(row.tokens[start + 1 : start + 71].tolist()) in texts
            for start, size in zip(starts, sizes, strict=True)
            if size == 72
        )


def test_windows_must_divide_the_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of 100 tokens cannot be cut into windows of 64; take a multiple"):
        Packing(token_store(tmp_path / "store"), length=100, window=64)


def test_a_step_reads_the_same_mixed_rows_whatever_the_microbatches(tmp_path: Path) -> None:
    def data(micro_batch_size: int, first_step: int = 0) -> list[MixedRows]:
        made = SegmentData(
            token_store(tmp_path / "store"),
            None,
            replace(STEP, length=2 * WINDOW, steps=3),
            replace(FINETUNE, recall_share=0.0, short_share=0.5),
            micro_batch_size=micro_batch_size,
            seed=3,
            first_step=first_step,
            window=WINDOW,
        )
        return list(made.train_dataloader())

    whole, parts, later = data(4), data(2), data(4, first_step=1)
    assert torch.equal(torch.cat([b.tokens for b in whole]), torch.cat([b.tokens for b in parts]))
    assert torch.equal(torch.cat([b.positions for b in whole]), torch.cat([b.positions for b in parts]))
    assert [int(batch.short.sum()) for batch in whole] == [2, 2, 2]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(whole[1:], later, strict=True))


def test_training_with_mixed_windows_learns_both(tmp_path: Path) -> None:
    config = replace(FINETUNE, short_share=0.5)
    model, rows = train(tmp_path, step=replace(STEP, length=2 * WINDOW, steps=30), config=config)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    rotary = find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    assert rotary.factors.tolist() == pytest.approx(SCALING.factors)


def test_the_loss_by_position_adds_up_to_the_loss() -> None:
    model, rows = extend(tiny_llama(), SCALING), token_rows(128, rows=3)
    rows[:, -1] = EOS
    answers = torch.zeros_like(rows, dtype=torch.bool)
    losses = batch_loss(model, Rows(rows, answers), by_position=True)
    assert list(losses.by_position) == ["loss_to_0.125", "loss_to_0.25", "loss_to_0.5", "loss_to_1"]
    totals, counts = zip(*losses.by_position.values(), strict=True)
    assert counts == (3 * 15, 3 * 16, 3 * 32, 3 * 63)
    tolerance = loss_rounding(model, rows.numel())
    assert relative_error(sum(totals) / sum(counts), losses.loss) < tolerance
    assert relative_error(totals[0], token_losses(model, rows)[:, :15].sum()) < tolerance
    assert batch_loss(model, Rows(rows, answers)).by_position == {}
