"""Every supported architecture: trained, saved and loaded under a scaling; the others are refused with the reason."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.finetune.train import save_checkpoint
from ropewalk.models.base import check_same_model, describe, load_model, load_tokenizer, window_before
from ropewalk.rope import RopeScaling, current_scaling, extend, rotary_shape
from tiny_models import (
    ROPE_MODELS,
    WINDOW,
    byte_tokenizer,
    loss_rounding,
    tiny_llama,
    tiny_mistral,
    tiny_qwen2,
    tiny_qwen3,
    token_rows,
)
from tiny_runs import STEP, train
from tolerances import relative_error

TARGET = 4 * WINDOW
SHORT = replace(STEP, length=2 * WINDOW, steps=1, batch_size=2)

plain_window = partial(window_before, start="plain", original_length=None)


def logits(model: Any, length: int = TARGET) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_rows(length)).logits
    return found


def scaling_of(model: Any) -> RopeScaling:
    pairs = rotary_shape(model).rotary_dim // 2
    factors = tuple(1.0 + 3.0 * pair / (pairs - 1) for pair in range(pairs))
    return RopeScaling(factors, WINDOW, TARGET, n_hat=4, attention_factor=1.1)


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_training_saving_and_loading_keep_the_scaling(tmp_path: Path, kind: str) -> None:
    model = ROPE_MODELS[kind]()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaling = scaling_of(model)
    train(tmp_path, step=SHORT, scaling=scaling, model=model)
    assert current_scaling(model) == scaling
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    save_checkpoint(model, byte_tokenizer(), scaling, tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"))
    extend(loaded, RopeScaling.from_json((tmp_path / "saved" / "scaling.json").read_text()))
    assert torch.equal(logits(loaded), logits(model))
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}


SLIDING: dict[str, Any] = {
    "mistral": lambda: tiny_mistral(sliding_window=16),
    "qwen2": lambda: tiny_qwen2(sliding_window=16, use_sliding_window=True, max_window_layers=0),
    "qwen3": lambda: tiny_qwen3(sliding_window=16, use_sliding_window=True, max_window_layers=0),
}


@pytest.mark.parametrize("kind", SLIDING)
def test_a_sliding_window_is_turned_off_with_a_word(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = SLIDING[kind]()
    whole = ROPE_MODELS[kind]()
    whole.load_state_dict(model.state_dict())
    assert relative_error(logits(model), logits(whole)) > 0.01
    model.save_pretrained(tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        loaded = load_model(str(tmp_path / "base"))
    assert "attends to the last 16 tokens only; this is turned off" in caplog.text
    assert torch.equal(logits(loaded), logits(whole))
    # As before where the sliding window never cut anything off.
    assert relative_error(logits(loaded, 16), logits(model, 16)) < loss_rounding(model, 16)
    loaded.save_pretrained(tmp_path / "again")
    caplog.clear()
    assert torch.equal(logits(load_model(str(tmp_path / "again"))), logits(whole))
    assert not caplog.text


def test_a_sliding_window_of_some_layers_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_qwen2(sliding_window=16, use_sliding_window=True, max_window_layers=1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path))), logits(model))
    assert not caplog.text
    assert plain_window(str(tmp_path)) == WINDOW


def test_a_model_whose_layers_all_slide_was_trained_within_their_window(tmp_path: Path) -> None:
    SLIDING["mistral"]().save_pretrained(tmp_path)
    assert plain_window(str(tmp_path)) == 16
    assert window_before(str(tmp_path), start="plain", original_length=WINDOW) == WINDOW


def test_a_sliding_window_is_kept_where_wanted(tmp_path: Path) -> None:
    model = SLIDING["mistral"]()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path), keep_sliding_window=True)), logits(model))


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__file__).with_name("ran").touch()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that brings its own architecture."""
    # transformers copies a checkpoint's code there and runs the copy.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "checkpoint"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("load", [load_model, plain_window])
def test_code_of_a_checkpoint_is_not_run_unasked(with_code: Path, load: Any) -> None:
    with pytest.raises(ValueError, match=r"set model\.trust_remote_code=true if you trust it") as raised:
        load(str(with_code))
    assert "\n" not in str(raised.value)
    assert not list(with_code.parent.rglob("ran"))


def test_code_of_a_checkpoint_runs_where_the_user_trusts_it(with_code: Path, tmp_path: Path) -> None:
    assert plain_window(str(with_code), trust_remote_code=True) == WINDOW
    model = load_model(str(with_code), trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert list(with_code.parent.rglob("ran"))
    scaling = scaling_of(model)
    train(tmp_path, step=SHORT, scaling=scaling, model=model)
    tokenizer = load_tokenizer(str(with_code), trust_remote_code=True)
    save_checkpoint(model, tokenizer, scaling, tmp_path / "saved")
    again = extend(load_model(str(tmp_path / "saved"), trust_remote_code=True), scaling)
    assert torch.equal(logits(again), logits(model))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    base = describe(tiny_llama(), name="own", path=str(tmp_path), original_length=None, start="plain")
    check_same_model(tiny_llama(), base, path="x")
    with pytest.raises(ValueError, match=r"^x is a checkpoint of another architecture than .*: parameters \d+ where"):
        check_same_model(ROPE_MODELS["qwen3"](), base, path="x")
