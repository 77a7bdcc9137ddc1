"""An export loads in plain transformers, equals our own rotary, and is whole or absent."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.export import export_checkpoint
from ropewalk.rope import RopeScaling, extend, rotary_shape
from tiny_models import WINDOW, token_rows

from .conftest import switch_for


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("length", [WINDOW // 2, WINDOW, WINDOW + 1, 4 * WINDOW])
def test_plain_transformers_gives_our_logits_below_and_beyond_the_window(
    model: Any, tokenizer: Any, tmp_path: Path, length: int
) -> None:
    switch = switch_for(model, n_hat=0)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = token_rows(length, rows=2)
    with torch.no_grad():
        plain = model(ids).logits
        ours = extend(model, switch[-1][1])(ids).logits
        theirs = loaded(ids).logits
    # Of the logits' size: the two round the frequencies differently, by some 1e-7 of an angle of hundreds of radians.
    torch.testing.assert_close(theirs, ours, atol=1e-5 * float(ours.abs().max()), rtol=0)
    assert not torch.allclose(plain, ours, atol=1e-2)


def test_generation_across_the_window_uses_one_scaling_in_plain_transformers(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    switch = switch_for(model, n_hat=0)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = token_rows(WINDOW - 6, rows=1)
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    theirs = loaded.generate(ids, **options)
    ours = extend(model, switch[-1][1]).generate(ids, use_cache=False, **options)
    assert theirs.tolist() == ours.tolist()


def test_config_tokenizer_and_files_say_the_extended_window(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(model, n_hat=4)
    folder = tmp_path / "model"
    export_checkpoint(model, tokenizer, switch, folder, card="# card\n")
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    last = switch[-1][1]
    assert rope["rope_type"] == "longrope"
    assert rope["short_factor"] == rope["long_factor"] == list(last.factors)
    assert rope["attention_factor"] == last.attention_factor
    assert rope["original_max_position_embeddings"] == WINDOW
    assert config["max_position_embeddings"] == last.target_length
    assert AutoTokenizer.from_pretrained(folder).model_max_length == last.target_length
    assert (folder / "README.md").read_text() == "# card\n"
    assert json.loads((folder / "ropewalk.json").read_text())["switch"][-1]["scaling"]["n_hat"] == 4
    assert "model.safetensors" in file_names(folder)
    assert not [name for name in file_names(folder) if name.endswith((".bin", ".pt")) or name.startswith(".")]


@pytest.mark.parametrize("extended", [False, True])
def test_the_model_in_memory_is_left_as_it_was(model: Any, tokenizer: Any, tmp_path: Path, extended: bool) -> None:
    switch = switch_for(model, n_hat=4)
    if extended:
        extend(model, switch[0][1])
    ids = token_rows(20)
    length_before = tokenizer.model_max_length
    config, inner = model.config, model.model.config
    before = copy.deepcopy(config.to_dict())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="card")
    assert model.config is config
    assert model.model.config is inner
    assert config.to_dict() == before
    assert tokenizer.model_max_length == length_before
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_dtype_of_the_weights_is_kept(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    export_checkpoint(llama.to(torch.bfloat16), tokenizer, switch_for(llama, n_hat=0), tmp_path / "model", card="")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("fails", ["tokenizer", "check"])
def test_a_failure_inside_leaves_no_half_written_folder(
    llama: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, fails: str
) -> None:
    folder = tmp_path / "model"
    switch = switch_for(llama, n_hat=0)
    if earlier:
        export_checkpoint(llama, tokenizer, switch, folder, card="earlier")
    config = llama.config

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    else:
        monkeypatch.setattr("ropewalk.export.checkpoint._check_config", fail)
    with pytest.raises(OSError, match="no space left"):
        export_checkpoint(llama, tokenizer, switch, folder, card="new")
    assert llama.config is config
    assert file_names(tmp_path) == ({"model"} if earlier else set())
    if earlier:
        assert (folder / "README.md").read_text() == "earlier"


def test_factors_for_another_rotary_dimension_are_refused_before_anything_is_written(
    llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    pairs = rotary_shape(llama).rotary_dim // 2
    wrong = RopeScaling((2.0,) * (pairs + 1), WINDOW, 2 * WINDOW)
    with pytest.raises(ValueError, match="rescale factors"):
        export_checkpoint(llama, tokenizer, ((2 * WINDOW, wrong),), tmp_path / "model", card="")
    assert not file_names(tmp_path)
