"""An export loads in plain transformers, equals our own rotary, and is whole or absent."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.export import export_checkpoint
from ropewalk.export.cost import exported_scalings
from ropewalk.models.base import load_model
from ropewalk.models.published import published_scaling
from ropewalk.rope import LengthSwitch, RopeScaling, extend, methods, rotary_shape
from tiny_models import WINDOW, tiny_llama, tiny_rounding, token_rows
from tolerances import relative_error

from .conftest import long_switch_for, switch_for

pytestmark = pytest.mark.numeric

SMALL_DISK = "64k"


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
        ours = extend(model, switch.longest)(ids).logits
        theirs = loaded(ids).logits
    assert relative_error(theirs, ours) < tiny_rounding(length)
    assert relative_error(plain, ours) > 100 * tiny_rounding(length)


def test_a_pair_that_stands_still_comes_through(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """CoPE's last frequency is zero, that is a factor of 1e9."""
    scaling = methods.METHODS["cope"](**vars(rotary_shape(model)), target_length=4 * WINDOW)
    assert max(scaling.factors) == pytest.approx(1e9)
    export_checkpoint(model, tokenizer, LengthSwitch(((4 * WINDOW, scaling),)), tmp_path / "model", card="card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = token_rows(4 * WINDOW, rows=2)
    with torch.no_grad():
        ours = extend(model, scaling)(ids).logits
        theirs = loaded(ids).logits
    assert relative_error(theirs, ours) < tiny_rounding(4 * WINDOW)


def test_generation_across_the_window_uses_one_scaling_in_plain_transformers(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    switch = switch_for(model, n_hat=0)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = token_rows(WINDOW - 6, rows=1)
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    theirs = loaded.generate(ids, **options)
    ours = extend(model, switch.longest).generate(ids, use_cache=False, **options)
    assert theirs.tolist() == ours.tolist()


def test_config_tokenizer_and_files_say_the_extended_window(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(model, n_hat=4)
    folder = tmp_path / "model"
    export_checkpoint(model, tokenizer, switch, folder, card="# card\n")
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    last = switch.longest
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
        extend(model, switch.scalings[0])
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
        monkeypatch.setattr("ropewalk.export.checkpoint._check_logits", fail)
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
        export_checkpoint(llama, tokenizer, LengthSwitch(((2 * WINDOW, wrong),)), tmp_path / "model", card="")
    assert not file_names(tmp_path)


@pytest.mark.parametrize("length", [WINDOW // 2, WINDOW, WINDOW + 1, 4 * WINDOW])
def test_recovered_factors_are_what_plain_transformers_applies_up_to_the_window(
    model: Any, tokenizer: Any, tmp_path: Path, length: int
) -> None:
    switch = long_switch_for(model)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="", short_factor="recovered")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    short, long = exported_scalings(switch, "recovered")
    ids = token_rows(length, rows=2)
    with torch.no_grad():
        theirs = loaded(ids).logits
        ours = extend(model, short if length <= WINDOW else long)(ids).logits
        other = extend(model, long if length <= WINDOW else short)(ids).logits
    assert relative_error(theirs, ours) < tiny_rounding(length)
    assert relative_error(theirs, other) > 100 * tiny_rounding(length)


def test_a_folder_that_holds_something_else_is_left_as_it_is(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no earlier export"):
        export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=0), folder, card="")
    with pytest.raises(ValueError, match="is a file"):
        export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=0), folder / "chapter.txt", card="")
    assert (folder / "chapter.txt").read_text() == "years of work"


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    llama: Any, tokenizer: Any, small_disk: Path
) -> None:
    with pytest.raises(OSError, match=r"needs 1\.\d MiB and its disk has"):
        export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=0), small_disk / "deep" / "model", card="")
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_embeddings_and_shards_come_through(tokenizer: Any, tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    sharded = load_model(str(tmp_path / "base"))
    switch = switch_for(model, n_hat=0)
    export_checkpoint(sharded, tokenizer, switch, tmp_path / "model", card="")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    ids = token_rows(2 * WINDOW)
    with torch.no_grad():
        ours = extend(model, switch.longest)(ids).logits
        assert relative_error(loaded(ids).logits, ours) < tiny_rounding(2 * WINDOW)


def test_generation_that_ended_at_the_old_window_ends_at_the_new_one(
    llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    switch = switch_for(llama, n_hat=0)
    for stated, expected in ((WINDOW, switch.longest.target_length), (WINDOW // 2, WINDOW // 2)):
        llama.generation_config.max_length = stated
        export_checkpoint(llama, tokenizer, switch, tmp_path / "model", card="")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config.max_length == expected


def test_a_tokenizers_own_length_limit_does_not_survive(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.model_max_length = 48
    export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=0), tmp_path / "model", card="")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(loaded("x" * 200, truncation=True)["input_ids"]) == 200


def test_more_files_lie_beside_the_card(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    picture = tmp_path / "perplexity.png"
    picture.write_bytes(b"picture")
    export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=0), tmp_path / "model", card="", files=[picture])
    assert (tmp_path / "model" / "perplexity.png").read_bytes() == b"picture"


def test_an_export_of_ours_is_read_back(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(llama, n_hat=0)
    export_checkpoint(llama, tokenizer, switch, tmp_path / "model", card="")
    assert published_scaling(tmp_path / "model").switch == LengthSwitch((switch.entries[-1],))
