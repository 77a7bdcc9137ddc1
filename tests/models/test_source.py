"""``model.path`` is a folder, a hub id or a GGUF file, which is read as what llama.cpp computes, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.export import export_checkpoint
from ropewalk.export.gguf import export_gguf
from ropewalk.files import file_hash
from ropewalk.models.base import describe, load_model, load_tokenizer, window_before
from ropewalk.models.pretokenizers import matching
from ropewalk.models.published import published_scaling
from ropewalk.models.source import Source
from ropewalk.rope import LengthSwitch, RopeScaling, methods, rotary_shape
from smollm2 import gguf_file
from tiny_models import WINDOW, tiny_llama, tiny_qwen2
from tiny_tokenizers import SAMPLES, byte_level, single_digits

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")


def written(model: Any, folder: Path, scaling: RopeScaling | None = None, *, dtype: str = "float32") -> Path:
    """``model`` as a GGUF file, with the tokenizer of SmolLM2's kind."""
    scaling = scaling or methods.none(**vars(rotary_shape(model)), target_length=WINDOW)
    switch = LengthSwitch(((scaling.target_length, scaling),))
    export_checkpoint(model, byte_level(single_digits()), switch, folder, card="")
    export_gguf(folder, folder / "gguf" / "model.gguf", dtype=dtype)
    return folder / "gguf" / "model.gguf"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tiny_llama(vocab_size=600), tmp_path_factory.mktemp("source") / "model")


def test_a_gguf_file_has_the_weights_and_the_window_that_were_written(file: Path) -> None:
    model, expected = load_model(str(file)), tiny_llama(vocab_size=600).state_dict()
    weights = model.state_dict()
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights[name].cpu(), tensor), name
    assert window_before(str(file), start="checkpoint", original_length=None) == WINDOW
    assert published_scaling(file).shape == rotary_shape(model)
    base = describe(model, name="hf", path=str(file), original_length=None)
    assert (base.name, base.weights_sha256, base.original_length) == ("model.gguf", file_hash(file), WINDOW)


def test_its_weights_have_the_dtype_that_is_asked_for(file: Path) -> None:
    assert {weight.dtype for weight in load_model(str(file), dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_its_tokenizer_splits_as_the_file_says(file: Path) -> None:
    """transformers by itself would split as GPT-2 does, since it does not know SmolLM2's name."""
    tokenizer, expected = load_tokenizer(str(file)), byte_level(single_digits())
    assert matching(tokenizer.backend_tokenizer).name == "smollm"
    for text in SAMPLES:
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]


def test_it_can_be_saved_and_loaded_again(file: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(file)), load_tokenizer(str(file))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for name, tensor in load_model(str(tmp_path)).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert load_tokenizer(str(tmp_path))(SAMPLES[0]) == tokenizer(SAMPLES[0])


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
def test_a_scaled_one_is_refused(build: Any, tmp_path: Path) -> None:
    """transformers leaves the factors out, so it would be another model without a word."""
    model = build(vocab_size=600)
    file = written(model, tmp_path / "model", methods.pi(**vars(rotary_shape(model)), target_length=4 * WINDOW))
    with pytest.raises(
        ValueError, match=r"model\.path .*model\.gguf has a scaled rotary embedding, which transformers"
    ):
        load_model(str(file))


def test_weights_that_transformers_leaves_out_are_refused(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=600, attention_bias=True)
    path = written(model, tmp_path / "model")
    with pytest.raises(ValueError, match="transformers reads 21 of its 29 weights"):
        load_model(str(path))


def test_a_splitting_that_is_not_known_is_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"smollm", b"smallm"))
    with pytest.raises(FileNotFoundError, match="its pre-tokenizer smallm is not known"):
        load_tokenizer(str(other))


def test_what_is_no_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"model\.path .*broken\.gguf cannot be read as GGUF"):
        Source.at(str(tmp_path / "broken.gguf")).check_weights()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.gguf").touch()
    with pytest.raises(
        FileNotFoundError, match=r"holds no config\.json; to read its GGUF file, give model\.path=.*a\.gguf"
    ):
        Source.at(str(tmp_path / "model")).check_weights()


def test_the_config_of_a_folder_stands_for_the_folder(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    assert Source.at(tmp_path / "config.json") == Source.at(tmp_path) == Source(str(tmp_path))
    assert Source.at(tmp_path).keywords == {}
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file; give the folder"):
        Source.at(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_a_pretrained_model_knows_the_capital_of_france() -> None:
    file = gguf_file()
    if isinstance(file, str):
        pytest.skip(file)
    model, tokenizer = load_model(str(file)), load_tokenizer(str(file))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids.to(model.device)
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
