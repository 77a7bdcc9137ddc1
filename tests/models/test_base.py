"""Loading a checkpoint: what is refused, and that each refusal is one line that says what to do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ropewalk.models import precision
from ropewalk.models.base import describe, load_model, load_tokenizer, process_device, window_before
from ropewalk.models.precision import resolve_precision
from tiny_models import ROPE_MODELS, WINDOW, byte_tokenizer, tiny_gpt2, tiny_llama, tiny_of, tiny_rounding, token_rows
from tolerances import relative_error

plain_window = partial(window_before, start="plain", original_length=None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def refusal(kind: type[Exception], load: Callable[[str], Any], folder: Path, *parts: str) -> None:
    with pytest.raises(kind) as raised:
        load(str(folder))
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    for part in (str(folder), *parts):
        assert part in message


def test_a_checkpoint_is_loaded_as_it_was_saved(checkpoint: Path) -> None:
    model = load_model(str(checkpoint))
    assert not model.training
    for parameter, expected in zip(model.parameters(), tiny_llama().parameters(), strict=True):
        assert torch.equal(parameter.cpu(), expected)
    assert {p.dtype for p in load_model(str(checkpoint), dtype="bfloat16").parameters()} == {torch.bfloat16}
    assert load_tokenizer(str(checkpoint))("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]


def test_loading_and_saving_print_nothing(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(str(checkpoint)), load_tokenizer(str(checkpoint))
    model.save_pretrained(checkpoint.with_name("again"))
    tokenizer.save_pretrained(checkpoint.with_name("again"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_every_kind_of_rope_model_is_loaded(tmp_path: Path, kind: str) -> None:
    ROPE_MODELS[kind]().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    base = describe(model, name="own", path=str(tmp_path), original_length=None)
    assert (base.original_length, base.vocab_size) == (WINDOW, 96)
    assert base.parameters == ROPE_MODELS[kind]().num_parameters()
    assert len(base.weights_sha256) == 64
    assert describe(model, name="own", path=str(tmp_path), original_length=32).original_length == 32


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_type_of_a_checkpoints_weights_is_told_whatever_they_are_computed_in(tmp_path: Path, key: str) -> None:
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps({**config, key: "bfloat16"}))
    model = load_model(str(tmp_path), dtype="float32")
    assert model.dtype == torch.float32
    assert describe(model, name="own", path=str(tmp_path), original_length=None).dtype == "bfloat16"


@pytest.mark.parametrize("load", [load_model, load_tokenizer, plain_window])
def test_a_folder_that_is_not_there(tmp_path: Path, load: Callable[[str], Any]) -> None:
    refusal(FileNotFoundError, load, tmp_path / "nowhere", "is not there; give a folder with a transformers checkpoint")


@pytest.mark.parametrize("load", [load_model, load_tokenizer, plain_window])
def test_no_config(checkpoint: Path, load: Callable[[str], Any]) -> None:
    (checkpoint / "config.json").unlink()
    refusal(FileNotFoundError, load, checkpoint, "holds no config.json")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    refusal(FileNotFoundError, load_model, checkpoint, "holds no .safetensors weights; convert the checkpoint first")


def test_weights_as_a_pickle_are_never_opened(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    refusal(FileNotFoundError, load_model, checkpoint, "holds no .safetensors weights")


@pytest.mark.parametrize("part", ["cut", "header", "empty"])
def test_a_damaged_weight_file(checkpoint: Path, part: str) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "header": b"\xff" * 100 + data[100:], "empty": b""}[part])
    refusal(ValueError, load_model, checkpoint, "is not a whole file of weights", "get the checkpoint again")


@pytest.mark.parametrize(
    ("kind", "attention", "taken"),
    [("llama", "auto", "sdpa"), ("llama", "eager", "eager"), ("gemma2", "auto", "eager")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is another one on a GPU")
@torch.no_grad()
def test_attention_is_one_that_the_class_supports(tmp_path: Path, kind: str, attention: str, taken: str) -> None:
    model, rows = tiny_of(kind), token_rows(40)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), attention=attention, keep_sliding_window=True)
    assert loaded.config._attn_implementation == taken
    assert relative_error(loaded(rows).logits, model(rows).logits) < tiny_rounding(40)


@pytest.mark.parametrize(
    ("attention", "why"),
    [
        ("sdpa", "does not support"),
        ("flash_attention_2", "FlashAttention2"),
        pytest.param(
            "flex_attention",
            "wrong logits",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is right on a GPU"),
        ),
    ],
)
def test_attention_that_is_not_supported(tmp_path: Path, attention: str, why: str) -> None:
    tiny_of("gemma2").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^model\.attention={attention}: [^\n]*{why}[^\n]*; take model.attention=auto$"
    ):
        load_model(str(tmp_path), attention=attention)


def test_weights_of_another_shape(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    refusal(ValueError, load_model, checkpoint, "layers.0.self_attn.k_proj.weight is (32, 64), not (16, 64); get both")


def test_weights_that_are_missing_are_not_made_up(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    refusal(ValueError, load_model, checkpoint, "model.layers.1.mlp.up_proj.weight")


def test_a_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{half")
    refusal(ValueError, load_model, checkpoint, "cannot be loaded")
    refusal(ValueError, plain_window, checkpoint, "config.json")


def test_an_unknown_architecture(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "perpetuum"}))
    refusal(ValueError, load_model, checkpoint, "perpetuum")
    refusal(ValueError, plain_window, checkpoint, "perpetuum")


def test_no_tokenizer(checkpoint: Path) -> None:
    for path in checkpoint.glob("token*"):
        path.unlink()
    refusal(FileNotFoundError, load_tokenizer, checkpoint, "has no tokenizer that can be loaded", "save one beside it")


def test_a_damaged_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{half")
    refusal(FileNotFoundError, load_tokenizer, checkpoint, "has no tokenizer that can be loaded")


def test_a_model_without_rope(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no rotary position embedding"):
        load_model(str(tmp_path))


def test_the_window_is_that_before_any_scaling(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "plain")
    assert plain_window(str(tmp_path / "plain")) == WINDOW
    scaled = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    tiny_llama(rope_parameters=scaled, max_position_embeddings=256).save_pretrained(tmp_path / "scaled")
    assert plain_window(str(tmp_path / "scaled")) == 64


def test_babyllama_is_loaded(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "babyllama"
    shutil.copytree(shared / "data" / "models" / "babyllama-105-hf", folder)
    base = describe(load_model(str(folder)), name="babyllama", path=str(folder), original_length=None)
    assert (base.original_length, base.rotary_dim, base.rope_theta) == (256, 16, 10_000.0)
    assert plain_window(str(folder)) == 256


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_is_bf16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "is_bfloat16_fast", lambda: fast)
    assert resolve_precision("auto") == ("bf16-mixed" if fast else "32-true")
    assert resolve_precision("16-mixed") == "16-mixed"


def test_bfloat16_is_refused_on_a_gpu_that_does_not_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_bfloat16_fast", lambda: False)
    with pytest.raises(ValueError, match=r"^model\.dtype=bfloat16: this GPU does not compute in"):
        load_model("nowhere", dtype="bfloat16", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"^finetune\.precision=bf16-mixed: this GPU does not"):
        resolve_precision("bf16-mixed")
    assert resolve_precision("16-mixed") == "16-mixed"


def test_bfloat16_is_slow_where_libraries_may_not_use_its_instructions() -> None:
    code = "from ropewalk.models.precision import is_bfloat16_fast; print(is_bfloat16_fast())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("environ", "cards", "device"),
    [
        ({}, 0, "cpu"),
        ({"SLURM_LOCALID": "3"}, 0, "cpu"),
        # A worker of a search, for which its card is the current one.
        ({}, 8, "cuda"),
        # torchrun or Lightning, srun with all cards visible, and srun that binds a card to each task.
        ({"LOCAL_RANK": "3"}, 8, "cuda:3"),
        ({"SLURM_LOCALID": "5", "SLURM_PROCID": "13"}, 8, "cuda:5"),
        ({"SLURM_LOCALID": "5", "SLURM_PROCID": "13"}, 1, "cuda:0"),
        # torchrun as a single task of srun.
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "0"}, 8, "cuda:3"),
    ],
)
def test_every_process_of_a_machine_has_a_card_of_its_own(environ: dict[str, str], cards: int, device: str) -> None:
    assert process_device(environ, cards=cards) == device


def test_weights_that_a_broken_download_left_are_refused_from_their_headers(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    weights, path = tmp_path / "model.safetensors", str(tmp_path)
    assert window_before(path, start="checkpoint", original_length=None) == WINDOW
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"its index names model-2\.safetensors, which is missing"):
        window_before(path, start="checkpoint", original_length=None)
    for broken in (b"version https://git-lfs.github.com/spec/v1\n", weights.read_bytes()[:-1]):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole file of weights \(.*\); get the chec"):
            window_before(path, start="checkpoint", original_length=None)
