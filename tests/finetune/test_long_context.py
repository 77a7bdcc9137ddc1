"""LongCE: weights and losses are those of the formula, written out token by token."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.corpus.segments import Rows
from ropewalk.finetune.long_context import short_context_losses, token_weights
from ropewalk.finetune.loss import batch_loss
from ropewalk.finetune.windows import MixedRows
from ropewalk.rope import extend
from tiny_models import WINDOW, loss_rounding, tiny_llama, token_rows
from tiny_runs import EOS, FINETUNE, SCALING, STEP, train, trained_llama
from tolerances import relative_error

LENGTH = 3 * WINDOW
MOST = 5.0


def log_probability(model: Any, context: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Of the token after the context, by a forward pass over the context alone."""
    logits: torch.Tensor = model(context[None]).logits[0, -1]
    return logits.log_softmax(-1)[token]


def by_hand(model: Any, short_model: Any, row: torch.Tensor, *, most: float) -> torch.Tensor:
    """LongCE of a row that ends with EOS, by a pass for every token (arXiv 2410.23771, equations 5 to 7)."""
    terms, half = [], WINDOW // 2
    for place in range(1, len(row) - 1):
        long = log_probability(model, row[:place], row[place])
        weight = torch.tensor(1.0)
        if place >= WINDOW:
            start = place // half * half - half
            context = torch.cat((row[:1], row[start + 1 : place]))
            assert half <= len(context) < WINDOW
            weight = (long - log_probability(short_model, context, row[place])).exp().clamp(max=most).detach()
        terms.append(-weight * long)
    return torch.stack(terms).mean()


def rows_with_eos(count: int) -> torch.Tensor:
    rows = token_rows(LENGTH, rows=count)
    rows[:, -1] = EOS
    return rows


def loss_of(model: Any, rows: torch.Tensor, most: float | None, *, short: bool | None = None) -> torch.Tensor:
    """Loss of long rows, among which there might be short ones unless ``short`` is None."""
    answers = torch.zeros_like(rows, dtype=torch.bool)
    batch: Rows | MixedRows = Rows(rows, answers)
    if short is not None:
        positions = torch.arange(LENGTH).expand_as(rows)
        batch = MixedRows(rows, positions, torch.zeros(len(rows), dtype=torch.bool), answers)
    return batch_loss(model, batch, window=WINDOW, long_context_weight=most).loss


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("most", [1.05, MOST])
def test_the_loss_and_its_gradient_are_those_of_the_formula(mixed: bool, most: float) -> None:
    # Weights that matter: the model has learned to continue what it has read.
    state = trained_llama().state_dict()
    model, reference, plain = (tiny_llama() for _ in range(3))
    for copy in (model, reference, plain):
        copy.load_state_dict(state)
    extend(model, SCALING)
    extend(reference, SCALING)
    row = rows_with_eos(1)
    loss = loss_of(model, row, most, short=False if mixed else None)
    expected = by_hand(reference, plain if mixed else reference, row[0], most=most)
    assert relative_error(loss, expected) < loss_rounding(model, LENGTH)
    assert relative_error(loss_of(model, row, None), expected) > 0.01
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    ours, theirs = (
        torch.cat([parameter.grad.flatten() for parameter in trained.parameters()]) for trained in (model, reference)
    )
    assert relative_error(ours, theirs) < loss_rounding(model, LENGTH, backward=True)


def test_micro_batches_have_the_loss_of_the_batch() -> None:
    model, rows = extend(tiny_llama(), SCALING), rows_with_eos(4)
    parts = [loss_of(model, part, MOST) for part in rows.split(2)]
    assert relative_error(torch.stack(parts).mean(), loss_of(model, rows, MOST)) < loss_rounding(model, 4 * LENGTH)


def test_weights_are_ratios_of_probabilities_up_to_the_largest() -> None:
    short = torch.tensor([math.log(2), math.log(2), math.log(100), math.nan])
    long = torch.tensor([math.log(2), math.log(4), 0.0, 0.5])
    assert token_weights(long, short, most=MOST).tolist() == pytest.approx([1.0, 0.5, 5.0, 1.0])


@pytest.mark.parametrize("length", [2, WINDOW, WINDOW + 7, 2 * WINDOW, 2 * WINDOW + 5])
def test_every_token_after_the_first_window_has_a_short_context(length: int) -> None:
    short = short_context_losses(tiny_llama(), token_rows(length, rows=2), window=WINDOW)
    assert short.shape == (2, length - 1)
    assert short[:, : WINDOW - 1].isnan().all()
    assert short[:, WINDOW - 1 :].isfinite().all()


def test_rows_within_the_window_are_weighted_alike() -> None:
    model, rows = tiny_llama(), token_rows(WINDOW, rows=2)
    answers = torch.zeros_like(rows, dtype=torch.bool)
    plain, weighted = (
        batch_loss(model, Rows(rows, answers), window=WINDOW, long_context_weight=most).loss for most in (None, MOST)
    )
    assert torch.equal(plain, weighted)


def test_training_with_weights_learns(tmp_path: Path) -> None:
    config = replace(FINETUNE, short_share=0.5, long_context_weight=MOST)
    _, rows = train(tmp_path, step=replace(STEP, length=2 * WINDOW, steps=30), config=config)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
