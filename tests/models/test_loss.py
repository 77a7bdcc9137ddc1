"""The chunked loss against transformers' own, and that it never holds the logits of all tokens."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.models.loss import mean_loss, token_losses
from tiny_models import ROPE_MODELS, tiny_llama, tiny_rounding, token_rows
from tiny_runs import EOS
from tolerances import relative_error

pytestmark = pytest.mark.numeric


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_the_losses_are_transformers_own(kind: str) -> None:
    model, rows = ROPE_MODELS[kind](), token_rows(64, rows=3)
    with torch.no_grad():
        expected = model(rows, labels=rows).loss
        assert relative_error(mean_loss(model, rows), expected) < tiny_rounding(64)
        losses = token_losses(model, rows)
        assert relative_error(losses.mean(), expected) < tiny_rounding(64)
        plain = torch.nn.functional.cross_entropy(
            model(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
        )
    assert losses.shape == (3, 63)
    assert relative_error(losses.flatten(), plain) < tiny_rounding(64)


def test_only_an_ignored_last_place_is_left_out() -> None:
    model, rows = tiny_llama(), token_rows(64, rows=3)
    rows[:, 20] = rows[0, -1] = EOS
    labels = rows.clone()
    labels[0, -1] = -100
    with torch.no_grad():
        expected = model(rows, labels=labels).loss
    assert relative_error(mean_loss(model, rows, ignore=EOS), expected) < tiny_rounding(64)


VOCABULARY = 2_000
ROWS, LENGTH = 8, 512


@pytest.mark.parametrize("training", [True, False])
def test_the_logits_of_all_tokens_are_never_held(training: bool) -> None:
    """4,096 tokens of a vocabulary of 2,000: all logits are 8.2 million numbers, a chunk is a quarter of them."""
    model = tiny_llama(vocab_size=VOCABULARY, num_hidden_layers=1)
    rows = token_rows(LENGTH, rows=ROWS)
    with Largest() as largest:
        if training:
            mean_loss(model, rows).backward()
        else:
            with torch.no_grad():
                token_losses(model, rows)
    assert largest.elements <= 1024 * VOCABULARY
    with Largest() as plain, torch.no_grad():
        model(rows[:, : LENGTH // 2])
    # The measure can fail: transformers' own pass holds them all.
    assert plain.elements >= ROWS * LENGTH // 2 * VOCABULARY


def test_the_chunked_loss_has_the_gradient_of_the_plain_one() -> None:
    model = tiny_llama(vocab_size=500)
    rows = token_rows(700, rows=2)
    mean_loss(model, rows).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(rows, labels=rows).loss.backward()
    # A backward pass is as long as two forward passes, and adds the gradients of all tokens. A gradient whose summands
    # cancel is as exact as a thousandth of all gradients together.
    floor = 1e-3 * math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    for name, parameter in model.named_parameters():
        assert relative_error(gradients[name], parameter.grad, floor=floor) < 3 * tiny_rounding(2 * 700), name
