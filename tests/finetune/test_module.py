"""The schedule of the learning rate, and the loss that a training step takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.module import FinetuneModule
from tiny_models import loss_rounding, tiny_llama, token_rows
from tiny_runs import EOS
from tolerances import relative_error


def module(model: Any = None, *, answer_weight: float = 0.0, **changes: Any) -> FinetuneModule:
    options = FinetuneConfig(name="tiny", answer_weight=answer_weight)
    values = {"length": 64, "steps": 10, "batch_size": 2, "learning_rate": 2e-5, "warmup_steps": 4, **changes}
    return FinetuneModule(model or tiny_llama(), FinetuneStepConfig(**values), options=options)


def rates(own: FinetuneModule, steps: int) -> list[float]:
    """Learning rate of each step, as torch's own scheduler gives it."""
    made = own.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_then_linear_decay_to_zero_after_the_last_step() -> None:
    shares = [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]
    assert rates(module(), 12) == pytest.approx([2e-5 * share for share in shares])


def test_warm_up_then_a_constant_rate() -> None:
    shares = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]
    assert rates(module(decay="constant"), 10) == pytest.approx([2e-5 * share for share in shares])


def test_no_warm_up() -> None:
    found = rates(module(warmup_steps=0, steps=4), 4)
    assert found == pytest.approx([2e-5 * share for share in (1, 3 / 4, 2 / 4, 1 / 4)])


def test_a_warm_up_longer_than_the_training_ends_at_the_full_rate() -> None:
    assert rates(module(warmup_steps=100, steps=4), 4) == pytest.approx([2e-5 * n / 4 for n in (1, 2, 3, 4)])


def of(ids: torch.Tensor, answers: torch.Tensor | None = None) -> Rows:
    return Rows(ids, torch.zeros_like(ids, dtype=torch.bool) if answers is None else answers)


def test_answers_count_by_their_weight_row_by_row() -> None:
    model, ids = tiny_llama(), token_rows(64, rows=3)
    ids[:, -1] = EOS
    answers = torch.zeros_like(ids, dtype=torch.bool)
    answers[0, 20:22] = answers[2, 40:50] = True
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        expected = losses[:, :-1].mean() + 0.3 * (losses[0, 19:21].mean() + losses[2, 39:49].mean()) / 2
        found = module(model, answer_weight=0.3).training_step(of(ids, answers), 0)
    assert relative_error(found, expected) < loss_rounding(model, ids.numel())


def test_the_loss_is_transformers_own_without_the_last_place() -> None:
    model, rows = tiny_llama(), token_rows(64, rows=3)
    rows[:, -1] = EOS
    labels = rows.clone()
    labels[:, -1] = -100
    with torch.no_grad():
        expected = model(rows, labels=labels).loss
    loss = module(model).training_step(of(rows), 0)
    assert relative_error(loss, expected) < loss_rounding(model, rows.numel())


@pytest.mark.parametrize("eos", [None, [50, 51], 95])
def test_the_last_place_is_left_out_whatever_the_models_config_says(eos: Any) -> None:
    model, rows = tiny_llama(), token_rows(64, rows=3)
    rows[:, -1] = EOS
    model.config.eos_token_id = EOS
    expected = module(model).training_step(of(rows), 0)
    model.config.eos_token_id = eos
    assert module(model).training_step(of(rows), 0) == expected


def test_the_gradient_is_that_of_plain_cross_entropy() -> None:
    model, rows = tiny_llama(), token_rows(64, rows=3)
    rows[:, -1] = EOS
    module(model).training_step(of(rows), 0).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(rows).logits[:, :-2]
    F.cross_entropy(logits.flatten(0, 1), rows[:, 1:-1].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert relative_error(found[name], parameter.grad) < loss_rounding(model, rows.numel(), backward=True)
