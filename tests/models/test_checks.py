"""The checks that always run pass on models that are computed rightly, and stop with one line on those that are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.models import checks
from ropewalk.models.base import describe, load_model
from ropewalk.models.loss import long_token_losses, token_losses
from ropewalk.rope import LengthSwitch, RopeScaling, extend, extended, find_rotary, methods, model_scaling, rotary_shape
from tiny_models import ROPE_MODELS, WINDOW, tiny_llama, tiny_phi3, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

LONG_WINDOW = 131_072
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": WINDOW}


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ROPE_MODELS)
def test_right_losses_and_scalings_pass_and_leave_everything_as_it_was(architecture: str, dtype: torch.dtype) -> None:
    model = ROPE_MODELS[architecture]().to(dtype)
    rotary, state = find_rotary(model)[1], torch.get_rng_state()
    with torch.no_grad():
        before = model(token_rows(20)).logits
    checks.check_losses(model, "somewhere")
    scaling = model_scaling(model)
    checks.check_published_scaling(model, LengthSwitch(((WINDOW, scaling), (8 * WINDOW, scaling))), "somewhere")
    assert torch.equal(torch.get_rng_state(), state)
    assert find_rotary(model)[1] is rotary
    with torch.no_grad():
        assert torch.equal(model(token_rows(20)).logits, before)


def wrong_whole(model: Any, rows: torch.Tensor) -> torch.Tensor:
    return token_losses(model, rows) * 1.01


def wrong_chunks(model: Any, rows: torch.Tensor, *, chunk: int) -> torch.Tensor:
    # Every chunk begins anew, as if there were no cache.
    parts = rows[:, :-1].split(chunk, dim=1)
    losses = long_token_losses(model, rows, chunk=chunk)
    losses[:, chunk:] = token_losses(model, rows[:, chunk:])
    assert len(parts) > 1
    return losses


@pytest.mark.parametrize(("name", "wrong"), [("token_losses", wrong_whole), ("long_token_losses", wrong_chunks)])
def test_losses_other_than_those_of_the_logits_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(checks, name, wrong)
    with pytest.raises(ValueError, match="losses in") as raised:
        checks.check_losses(tiny_llama(), "models/here")
    one_line(raised, "LlamaForCausalLM at models/here", "of the logits' spread")


def test_a_model_that_cannot_read_a_row_is_refused_in_one_line() -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="does not read a row of tokens") as raised:
        checks.check_losses(model, "models/here")
    one_line(raised, "LlamaForCausalLM at models/here")


@pytest.mark.parametrize("window", [WINDOW, LONG_WINDOW])
def test_a_scaling_that_is_read_wrongly_is_refused_whatever_the_window(window: int) -> None:
    rope = {**YARN, "original_max_position_embeddings": window}
    model = tiny_llama(max_position_embeddings=4 * window, rope_parameters=rope)
    right = methods.yarn(**vars(rotary_shape(model)), target_length=4 * window)
    checks.check_published_scaling(model, LengthSwitch(((4 * window, right),)), "models/here")
    for wrong in (methods.pi, methods.ntk, methods.none):
        scaling = wrong(**vars(rotary_shape(model)), target_length=4 * window)
        with pytest.raises(ValueError, match=f"logits at {window} tokens") as raised:
            checks.check_published_scaling(model, LengthSwitch(((4 * window, scaling),)), "models/here")
        one_line(raised, "LlamaForCausalLM at models/here", f"the {scaling.method} scaling read from config.json")


def test_both_sets_of_a_longrope_checkpoint_are_checked() -> None:
    pairs, window = 4, LONG_WINDOW
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    model = tiny_phi3(
        max_position_embeddings=8 * window,
        original_max_position_embeddings=window,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **factors},
    )
    attention_factor = model_scaling(model).attention_factor
    short, long, plain = (
        RopeScaling(tuple(values), window, 8 * window, attention_factor=attention_factor)
        for values in (*factors.values(), [1.0] * pairs)
    )
    checks.check_published_scaling(model, LengthSwitch(((window, short), (8 * window, long))), "here")
    with pytest.raises(ValueError, match=f"logits at {window} tokens"):
        checks.check_published_scaling(model, LengthSwitch(((window, plain), (8 * window, long))), "here")
    with pytest.raises(ValueError, match=f"logits at {8 * window} tokens"):
        checks.check_published_scaling(model, LengthSwitch(((window, short), (8 * window, short))), "here")


@pytest.mark.parametrize("start", ["checkpoint", "plain"])
def test_a_loaded_checkpoint_is_checked_under_the_scaling_that_it_came_with(tmp_path: Path, start: str) -> None:
    tiny_llama(max_position_embeddings=4 * WINDOW, rope_parameters=YARN).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    described = describe(model, name="hf", path=str(tmp_path), original_length=None, start=start)
    checks.check_loaded(model, described)


def test_extended_lasts_as_long_as_its_block() -> None:
    model, ids = tiny_llama(), token_rows(20)
    scaling = methods.yarn(**vars(rotary_shape(model)), target_length=4 * WINDOW)
    with torch.no_grad():
        plain = model(ids).logits
        with extended(model, scaling):
            under = model(ids).logits
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(extend(model, scaling)(ids).logits, under)
    assert not torch.equal(under, plain)


def test_the_row_of_a_long_input_is_short_and_reaches_its_end() -> None:
    for length in (1, WINDOW, 4096, LONG_WINDOW):
        row = checks._row(tiny_llama(), length)
        assert row is not None
        positions = row["position_ids"][0].tolist()
        assert positions[0] == 0
        assert positions[-1] == length - 1
        assert positions == sorted(set(positions))
        assert len(positions) <= 256


def test_a_reloaded_model_that_attends_less_far_or_has_other_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    checks.check_same_weights(model, loaded, path="here", dtype=torch.float32)
    loaded.config.sliding_window = 8
    with pytest.raises(ValueError, match="LlamaForCausalLM at here: sliding_window is None in memory and 8"):
        checks.check_same_weights(model, loaded, path="here", dtype=torch.float32)
    loaded.config.sliding_window = None
    with torch.no_grad():
        loaded.model.norm.weight[3] += 1e-3
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not what it is in memory"):
        checks.check_same_weights(model, loaded, path="here", dtype=torch.float32)
    # The same difference is rounding in bfloat16.
    checks.check_same_weights(model, loaded, path="here", dtype=torch.bfloat16)


def test_weights_of_another_model_explain_its_logits() -> None:
    model, other, ids = tiny_llama(), tiny_llama(initializer_range=0.1), token_rows(20)
    row = {"input_ids": ids}
    expected = checks.forward_logits(other, row)
    actual = checks.forward_logits(model, row, weights=other.state_dict(keep_vars=True))
    assert relative_error(actual, expected) < tiny_rounding(20)
