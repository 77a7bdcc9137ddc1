"""A GGUF export holds the weights, factors and tokenizer as llama.cpp reads them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import llama_build
from ropewalk.export import export_checkpoint
from ropewalk.export.cost import exported_scalings
from ropewalk.export.gguf import export_gguf
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.models.loss import token_losses
from ropewalk.rope import RopeScaling, extend, rotary_shape
from tiny_models import WINDOW, tiny_llama, tiny_qwen3
from workspace import ROOT

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
    assert values["llama.rope.scaling.attn_factor"] == pytest.approx(switch[-1][1].attention_factor)
    assert values["llama.rope.freq_base"] == 10_000.0
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["rope_factors_long.weight"].tolist() == pytest.approx(switch[-1][1].factors)
    assert tensors["rope_factors_short.weight"].tolist() == pytest.approx(switch[1][1].factors)


def test_one_set_of_factors_is_for_every_length(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(llama, n_hat=0)
    export_checkpoint(tiny_llama(vocab_size=300), tokenizer, switch, tmp_path / "model", card="")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["rope_freqs.weight"].tolist() == pytest.approx(switch[-1][1].factors)
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


def test_what_is_not_llama_shaped_is_refused_before_anything_is_written(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_qwen3()
    export_checkpoint(model, tokenizer, switch_for(model, n_hat=0), tmp_path / "model", card="")
    with pytest.raises(ValueError, match="of type qwen3; a GGUF export is for llama and mistral"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


SMALL_DISK = "64k"
READ_BY_LLAMA_CPP = """
import json, sys
import numpy as np
from llama_cpp import Llama
path, context, ids = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
llama = Llama(path, n_ctx=context, n_batch=len(ids), logits_all=True, verbose=False, n_threads=1)
llama.eval(ids)
logits = np.asarray(llama.scores[: len(ids) - 1], dtype=np.float64)
top = logits.max(-1, keepdims=True)
losses = (np.log(np.exp(logits - top).sum(-1)) + top[:, 0]) - logits[np.arange(len(ids) - 1), ids[1:]]
print(float(np.exp(losses.mean())))
"""


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(exported: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"model\.gguf needs 1\.\d MiB and its disk has"):
        export_gguf(exported, small_disk / "model.gguf", dtype="float32")
    assert not list(small_disk.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("short_factor", ["same", "recovered"])
def test_llama_cpp_reads_the_export_with_our_perplexity(tmp_path: Path, short_factor: str) -> None:
    """Below, at, right above and beyond the original window; with two sets of factors by the context asked for."""
    environment = llama_build.environment()
    if environment is None:
        pytest.skip(f"llama.cpp is not built in {llama_build.PLACE}; `make llama` builds it")
    walker = str(ROOT / "models" / "walker")
    model, tokenizer = load_model(walker), load_tokenizer(walker)
    window = rotary_shape(model).original_length
    pairs = rotary_shape(model).rotary_dim // 2

    def rising(highest: float, length: int) -> RopeScaling:
        factors = tuple(highest ** (pair / (pairs - 1)) for pair in range(pairs))
        return RopeScaling(factors, window, length, attention_factor=1.1)

    switch = ((window, rising(2.5, window)), (4 * window, rising(16.0, 4 * window)))
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="", short_factor=short_factor)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", dtype="float32")
    text = Path(subprocess.__file__).read_text(encoding="utf-8")
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    short, long = exported_scalings(switch, short_factor)

    def perplexity(scaling: RopeScaling, length: int) -> float:
        with torch.no_grad():
            return float(token_losses(extend(model, scaling), torch.tensor([ids[:length]])).mean().exp())

    for length in (window // 2, window, window + 1, 4 * window):
        # llama.cpp chooses by its context, which it rounds up to a multiple of 256: the walker's window is one.
        context = window if length <= window else 4 * window
        done = subprocess.run(
            (sys.executable, "-c", READ_BY_LLAMA_CPP, str(tmp_path / "model.gguf"), str(context), str(ids[:length])),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        theirs = float(done.stdout.split()[-1])
        ours, other = (short, long) if length <= window else (long, short)
        assert theirs == pytest.approx(perplexity(ours, length), rel=0.01), length
        # Neither plain RoPE nor the other set would do.
        wrong = [RopeScaling((1.0,) * pairs, window, 4 * window), *([other] if other != ours else [])]
        for scaling in wrong:
            if length > window // 2:
                assert abs(perplexity(scaling, length) / theirs - 1) > 0.01, (length, scaling)
