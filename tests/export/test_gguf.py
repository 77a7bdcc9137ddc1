"""A GGUF export holds the weights, factors and tokenizer as llama.cpp reads them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.export import export_checkpoint
from ropewalk.export.gguf import export_gguf
from ropewalk.rope import LengthSwitch, methods, rotary_shape
from tiny_models import WINDOW, tiny_gemma, tiny_gpt_neox, tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3
from tolerances import relative_error, rounding

from .conftest import long_switch_for, switch_for

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")


def fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.fixture
def exported(tokenizer: Any, tmp_path: Path) -> Path:
    model = tiny_llama(vocab_size=300, tie_word_embeddings=False)
    export_checkpoint(model, tokenizer, long_switch_for(model), tmp_path / "model", card="", short_factor="recovered")
    return tmp_path / "model"


def test_factors_lengths_and_attention_factor_are_where_llama_cpp_looks(exported: Path, llama: Any) -> None:
    export_gguf(exported, exported / "model.gguf", dtype="float32")
    reader = gguf.GGUFReader(exported / "model.gguf")
    values = fields(reader)
    switch = long_switch_for(llama)
    assert values["llama.rope.scaling.type"] == "longrope"
    assert values["llama.rope.scaling.original_context_length"] == WINDOW
    assert values["llama.context_length"] == 8 * WINDOW
    assert values["llama.rope.scaling.attn_factor"] == pytest.approx(switch.longest.attention_factor)
    assert values["llama.rope.freq_base"] == 10_000.0
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["rope_factors_long.weight"].tolist() == pytest.approx(switch.longest.factors)
    assert tensors["rope_factors_short.weight"].tolist() == pytest.approx(switch.scalings[1].factors)


def test_one_set_of_factors_is_for_every_length(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(llama, n_hat=0)
    export_checkpoint(tiny_llama(vocab_size=300), tokenizer, switch, tmp_path / "model", card="")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["rope_freqs.weight"].tolist() == pytest.approx(switch.longest.factors)
    assert fields(reader)["llama.rope.scaling.type"] == "none"
    assert not [name for name in tensors if name.startswith("rope_factors")]


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_own_gguf_reader_finds_the_same_weights(tokenizer: Any, tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    # With biases, as the demo's model has them.
    model = tiny_llama(vocab_size=300, tie_word_embeddings=tied, attention_bias=True)
    for name, tensor in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(tensor)
    export_checkpoint(model, tokenizer, switch_for(model, n_hat=0), tmp_path / "model", card="")
    export_gguf(tmp_path / "model", tmp_path / "gguf" / "model.gguf", dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "gguf", gguf_file="model.gguf", config=model.config
    ).state_dict()
    expected = model.state_dict()
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name


def test_float16_keeps_vectors_in_float32(exported: Path) -> None:
    export_gguf(exported, exported / "model.gguf")
    types = {tensor.name: tensor.data.dtype for tensor in gguf.GGUFReader(exported / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == np.float16
    assert types["blk.0.attn_norm.weight"] == types["rope_factors_long.weight"] == np.float32


def test_the_tokenizer_goes_with_it(exported: Path, tokenizer: Any) -> None:
    export_gguf(exported, exported / "model.gguf")
    values = fields(gguf.GGUFReader(exported / "model.gguf"))
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.tokens"][:258] == tokenizer.convert_ids_to_tokens(range(258))
    assert len(values["tokenizer.ggml.tokens"]) == 300


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (tiny_gpt_neox, "it is of type gpt_neox; a GGUF export is for llama, mistral, phi3, qwen2, qwen3, gemma"),
        (tiny_qwen3, "llama.cpp applies no rescale factors in qwen3 models, only linear scaling, another base or YaRN"),
        (
            lambda **sizes: tiny_mistral(sliding_window=32, **sizes),
            "it has sliding-window attention, which GGUF's llama",
        ),
        (lambda **sizes: tiny_llama(hidden_act="gelu", **sizes), "its activation is gelu, that of GGUF's llama silu"),
    ],
    ids=["model type", "factors", "sliding window", "activation"],
)
def test_what_llama_cpp_computes_otherwise_is_refused_before_anything_is_written(
    build: Any, reason: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = build(vocab_size=300)
    export_checkpoint(model, tokenizer, switch_for(model, n_hat=0), tmp_path / "model", card="")
    with pytest.raises(ValueError, match=f"model cannot be written as GGUF: {reason}"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("build", [tiny_qwen2, tiny_qwen3, tiny_gemma])
@pytest.mark.parametrize("method", [methods.pi, methods.ntk, methods.yarn])
def test_where_llama_cpp_applies_no_factors_its_own_formulas_give_our_frequencies(
    build: Any, method: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = build(vocab_size=300)
    shape = rotary_shape(model)
    scaling = method(**vars(shape), target_length=8 * WINDOW)
    export_checkpoint(model, tokenizer, LengthSwitch(((8 * WINDOW, scaling),)), tmp_path / "model", card="")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    values = fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    rope = {key.split(".rope.")[1]: value for key, value in values.items() if ".rope." in key}
    kind, factor = rope["scaling.type"], rope["scaling.factor"]
    assert kind == ("yarn" if method is methods.yarn else "linear")
    plain = torch.tensor(methods.inverse_frequencies(shape.rotary_dim, rope["freq_base"]), dtype=torch.float64)
    factors = methods.yarn(**vars(shape), target_length=8 * WINDOW).factors if kind == "yarn" else (factor,)
    ours = torch.tensor(methods.inverse_frequencies(shape.rotary_dim, shape.base)) / torch.tensor(scaling.factors)
    assert relative_error(plain / torch.tensor(factors), ours) < rounding(4)
    with_yarns = 1 + 0.1 * math.log(factor) if kind == "yarn" else 1.0
    assert rope["scaling.attn_factor"] * with_yarns == pytest.approx(scaling.attention_factor, rel=rounding(4))


SMALL_DISK = "64k"


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(exported: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"model\.gguf needs 1\.\d MiB and its disk has"):
        export_gguf(exported, small_disk / "model.gguf", dtype="float32")
    assert not list(small_disk.iterdir())
