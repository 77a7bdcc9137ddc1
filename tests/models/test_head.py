"""Losses through the class's own head, against the cross entropy of the logits that its forward gives."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.head import logits_of, plain_output
from ropewalk.models.loss import hidden_states, long_token_losses, losses_of, mean_loss, token_losses
from tiny_models import ROPE_MODELS, VOCABULARY, tiny_llama, tiny_of, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
HEADS: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.0625},
    "granitemoe": {"logits_scaling": 8.0, **EXPERTS},
    "nanochat": {},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16},
    "falcon_h1": {"lm_head_multiplier": 0.3, **MAMBA},
}
"""Sizes of models whose classes do more than multiply by their output matrix."""


def tiny(kind: str, **changes: Any) -> Any:
    return tiny_of(kind, **{**HEADS[kind], **changes})


def losses_by_forward(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """(rows, length - 1), from the logits of the whole forward pass."""
    logits = model(rows).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@torch.no_grad()
def test_losses_are_those_of_the_logits_that_forward_gives(model: Any) -> None:
    rows = token_rows(60)
    expected, tolerance = losses_by_forward(model, rows), tiny_rounding(60)
    assert relative_error(token_losses(model, rows), expected) < tolerance
    assert relative_error(long_token_losses(model, rows, chunk=17), expected) < tolerance
    assert relative_error(mean_loss(model, rows), expected.mean()) < tolerance
    chosen = torch.zeros_like(rows, dtype=torch.bool)
    chosen[0, 20:23] = chosen[1, 40:] = True
    for chunk in (60, 17):
        losses = long_token_losses(model, rows, chunk=chunk, chosen=chosen)
        assert relative_error(losses, torch.where(chosen[:, 1:], expected, 0.0)) < tolerance
    by_matrix = F.cross_entropy(model.lm_head(hidden_states(model, rows)[0, :-1]), rows[0, 1:], reduction="none")
    assert relative_error(by_matrix, expected[0]) > 100 * tolerance


@torch.no_grad()
def test_a_prompt_is_continued_by_the_logits_that_forward_gives(model: Any) -> None:
    ids = token_rows(40, rows=1)[0].tolist()
    expected = list(ids)
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    read = ReadPrompt(model, ids[:40], room=6, chunk=17)
    assert list(read.greedy(6)) == expected[40:]
    likelihood = -losses_by_forward(model, torch.tensor([expected]))[0, 39:].sum()
    assert relative_error(torch.tensor(read.log_likelihood(expected[40:])), likelihood) < tiny_rounding(60)


def test_training_goes_the_way_of_the_loss_of_forward(model: Any) -> None:
    ours, theirs = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    for trained, loss in ((ours, mean_loss), (theirs, lambda *args: losses_by_forward(*args).mean())):
        # Plain gradient descent, so that the size of the gradient counts too.
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            loss(trained, token_rows(60 + step)).backward()
            optimizer.step()
    reached, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, start in model.named_parameters():
        # A weight that hardly moved is as exact as its own rounding.
        moved, floor = expected[name] - start, 1e-4 * float(start.detach().norm())
        assert relative_error(reached[name] - start, moved, floor=floor) < 3 * 3 * tiny_rounding(60), name


def test_the_backward_pass_holds_no_logits() -> None:
    model, rows, held = tiny("granite", vocab_size=2_000), token_rows(512, rows=8), list[int]()
    states = hidden_states(model, rows).detach().requires_grad_()

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = losses_of(model, states[:, :-1], rows[:, 1:], "mean")
        assert max(held) <= states.numel()
        # The measure can fail: a chunk of 1,024 tokens has 2 million logits.
        losses_by_forward(model, rows[:2])
        assert max(held) >= 1_000 * 2_000
    loss.backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_a_product_with_the_output_matrix_is_recognised(kind: str) -> None:
    model = ROPE_MODELS[kind]()
    assert plain_output(model) is model.get_output_embeddings()
    assert torch.equal(logits_of(model, hidden_states(model, token_rows(20))), model(token_rows(20)).logits)
    with torch.inference_mode():
        assert plain_output(model) is model.get_output_embeddings()


class _Changed(LlamaForCausalLM):
    """A class whose ``forward`` calls ``change(logits)`` after its output matrix."""

    change: Any

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutputWithPast:
        states = self.model(input_ids=input_ids, **options).last_hidden_state
        return CausalLMOutputWithPast(logits=self.change(self.lm_head(states)))


@pytest.mark.parametrize(
    "change",
    [lambda logits: logits + 0, lambda logits: logits.tanh_(), lambda logits: logits.mul_(2)],
    ids=["copy", "cap in place", "factor in place"],
)
@torch.no_grad()
def test_whatever_a_class_does_to_its_logits_counts(change: Any) -> None:
    model, rows = tiny_llama(), token_rows(30)
    model.__class__, model.change = _Changed, change
    assert plain_output(model) is None
    assert relative_error(token_losses(model, rows), losses_by_forward(model, rows)) < tiny_rounding(30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [False, True], ids=["reading", "training"])
def test_losses_of_131_072_tokens_in_half_precision_are_those_of_float64(dtype: torch.dtype, trains: bool) -> None:
    model, generator = tiny_llama().to(dtype), torch.Generator().manual_seed(0)
    states = torch.randn(1, 2**17, 64, generator=generator).to(dtype).requires_grad_(trains)
    targets = torch.randint(VOCABULARY, (1, 2**17), generator=generator)
    logits = states[0].detach().double() @ model.lm_head.weight.detach().double().T
    expected = F.cross_entropy(logits, targets[0], reduction="none")
    # A loss is a difference of rounded numbers of about its size; rounding errors of many tokens cancel in their mean.
    size = torch.finfo(dtype).eps * float(logits.abs().max()) / float(expected.mean())
    with torch.set_grad_enabled(trains):
        losses, mean = (losses_of(model, states, targets, kind) for kind in ("none", "mean"))
    assert mean.dtype == losses.dtype == torch.float32
    assert relative_error(losses.double(), expected) < size
    assert relative_error(mean.double(), expected.mean()) < size / 50
    if trains:
        mean.backward()
        weight = model.lm_head.weight
        exact = weight.detach().double().requires_grad_()
        F.cross_entropy(states[0].detach().double() @ exact.T, targets[0]).backward()
        # The gradients of 128 chunks are added up in the dtype of the weights.
        assert relative_error(weight.grad.double(), exact.grad) < 4 * torch.finfo(dtype).eps
