"""The real llama.cpp, built by ``make llama``, reads an exported GGUF file: our ids from text, and our losses."""

import argparse
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import llama_reader
from ropewalk.export import export_checkpoint
from ropewalk.export.cost import exported_scalings
from ropewalk.export.gguf import export_gguf
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.models.loss import token_losses
from ropewalk.models.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from ropewalk.rope import LengthSwitch, RopeScaling, extend, methods, rotary_shape
from smollm2 import gguf_file
from tiny_models import WINDOW, tiny_gemma, tiny_llama, tiny_mistral, tiny_phi3, tiny_qwen2, tiny_qwen3, token_rows
from tiny_tokenizers import LLAMA3_REGEX, SAMPLES, TEXT, byte_level, sentencepiece, split_by
from tolerances import relative_error
from workspace import ROOT

pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SOURCE = inspect.getsource(argparse)[20_000:60_000]
"""Python source with no number of three digits."""
PERPLEXITY = 1e-3
"""Relative difference of perplexities that is allowed: a tenth of a per cent."""
APART = 1e-2
"""Relative difference of losses between one scaling and another, at least."""


def exported(model: Any, tokenizer: Any, switch: LengthSwitch, folder: Path, **options: str) -> Path:
    export_checkpoint(model, tokenizer, switch, folder / "model", card="", **options)
    export_gguf(folder / "model", folder / "model.gguf", dtype="float32")
    return folder / "model.gguf"


def our_losses(model: Any, scaling: RopeScaling, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return token_losses(extend(model, scaling), torch.tensor([list(ids)], device=model.device))[0].cpu()


def perplexity(losses: Any) -> float:
    return math.exp(torch.as_tensor(losses).mean())


def walker() -> tuple[Any, Any]:
    folder = str(ROOT / "models" / "walker")
    return load_model(folder), load_tokenizer(folder)


def llama3() -> tuple[Any, Any]:
    tokenizer = byte_level(split_by(LLAMA3_REGEX), puts_bos=True)
    return tiny_llama(vocab_size=len(tokenizer)), tokenizer


def smollm2() -> tuple[Any, Any]:
    file = gguf_file()
    if isinstance(file, str):
        pytest.skip(file)
    return load_model(str(file)), load_tokenizer(str(file))


@pytest.mark.parametrize(
    ("build", "texts", "tokens"),
    [
        (walker, [SOURCE, "x  12  7\n 9\t10 (11) 3² 'RE\n\n   00 end  "], 1500),
        (llama3, [*SAMPLES, SOURCE], 200),
        (smollm2, [*SAMPLES, SOURCE], 300),
    ],
    ids=["walker", "llama3", "smollm2"],
)
def test_text_has_our_ids_and_our_perplexity(
    build: Callable[[], tuple[Any, Any]], texts: list[str], tokens: int, tmp_path: Path
) -> None:
    model, tokenizer = build()
    shape = rotary_shape(model)
    length = 8 * shape.original_length
    scaling = methods.yarn(**vars(shape), target_length=length)
    file = exported(model, tokenizer, LengthSwitch(((length, scaling),)), tmp_path)
    ids = llama_reader.ids_of_texts(file, texts)
    assert ids == [tokenizer(text)["input_ids"] for text in texts]
    row = max(ids, key=len)[:tokens]
    theirs = llama_reader.losses(file, row, context=len(row))
    assert perplexity(theirs) == pytest.approx(perplexity(our_losses(model, scaling, row)), rel=PERPLEXITY)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS, ids=lambda pre: pre.name)
def test_every_way_of_splitting_has_our_ids(pre: PreTokenizer, tmp_path: Path) -> None:
    _check_ids(byte_level(pre.build()), tmp_path)


@pytest.mark.parametrize("space", [True, False], ids=["space in front", "no space in front"])
def test_sentencepiece_has_our_ids(space: bool, tmp_path: Path) -> None:
    _check_ids(sentencepiece(space_in_front=space), tmp_path)


def _check_ids(tokenizer: Any, folder: Path) -> None:
    model = tiny_llama(vocab_size=len(tokenizer))
    switch = LengthSwitch(((WINDOW, methods.none(**vars(rotary_shape(model)), target_length=WINDOW)),))
    texts = [*SAMPLES, TEXT]
    ids = llama_reader.ids_of_texts(exported(model, tokenizer, switch, folder), texts)
    assert ids == [tokenizer(text)["input_ids"] for text in texts]


def searched(*, rotary_dim: int, base: float, original_length: int, target_length: int) -> RopeScaling:
    """Factors that follow no formula of llama.cpp's."""
    factors = tuple(1 + 0.5 * pair for pair in range(rotary_dim // 2))
    return RopeScaling(factors, original_length, target_length, attention_factor=1.1)


FACTORS = {
    "llama with biases": lambda **sizes: tiny_llama(attention_bias=True, mlp_bias=True, **sizes),
    "mistral": tiny_mistral,
    "phi3": tiny_phi3,
}
NO_FACTORS = {"qwen2": tiny_qwen2, "qwen3": tiny_qwen3, "gemma": tiny_gemma}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, searched) for name in FACTORS),
        *((name, method) for name in NO_FACTORS for method in (methods.pi, methods.ntk, methods.yarn)),
    ],
)
def test_every_model_type_has_our_losses(name: str, method: Callable[..., RopeScaling], tmp_path: Path) -> None:
    tokenizer = byte_level(split_by(LLAMA3_REGEX))
    model = (FACTORS | NO_FACTORS)[name](vocab_size=len(tokenizer))
    for parameter, tensor in model.named_parameters():
        if parameter.endswith(".bias") or "norm" in parameter:
            torch.nn.init.normal_(tensor, mean=0.0 if parameter.endswith(".bias") else 0.7, std=0.3)
    scaling = method(**vars(rotary_shape(model)), target_length=8 * WINDOW)
    file = exported(model, tokenizer, LengthSwitch(((8 * WINDOW, scaling),)), tmp_path)
    row = token_rows(200)[0].tolist()
    theirs = llama_reader.losses(file, row, context=8 * WINDOW)
    assert relative_error(theirs, our_losses(model, scaling, row)) < PERPLEXITY
    plain = methods.none(**vars(rotary_shape(model)), target_length=8 * WINDOW)
    assert relative_error(theirs, our_losses(model, plain, row)) > APART


@pytest.mark.parametrize("short_factor", ["same", "recovered"])
def test_the_factors_change_at_the_original_window(tmp_path: Path, short_factor: str) -> None:
    """Below, at, right above and beyond it; with two sets of factors by the context asked for."""
    model, tokenizer = walker()
    window = rotary_shape(model).original_length
    pairs = rotary_shape(model).rotary_dim // 2

    def rising(highest: float, length: int) -> RopeScaling:
        factors = tuple(highest ** (pair / (pairs - 1)) for pair in range(pairs))
        return RopeScaling(factors, window, length, attention_factor=1.1)

    switch = LengthSwitch(((window, rising(2.5, window)), (4 * window, rising(16.0, 4 * window))))
    file = exported(model, tokenizer, switch, tmp_path, short_factor=short_factor)
    ids = tokenizer(SOURCE)["input_ids"]
    short, long = exported_scalings(switch, short_factor)
    for length in (window // 2, window, window + 1, 4 * window):
        # llama.cpp chooses by its context, which it rounds up to a multiple of 256: the walker's window is one.
        theirs = perplexity(llama_reader.losses(file, ids[:length], context=window if length <= window else 4 * window))
        ours, other = (short, long) if length <= window else (long, short)
        assert theirs == pytest.approx(perplexity(our_losses(model, ours, ids[:length])), rel=PERPLEXITY), length
        # Neither plain RoPE nor the other set would do.
        wrong = [RopeScaling((1.0,) * pairs, window, 4 * window), *([other] if other != ours else [])]
        for scaling in wrong:
            if length > window // 2:
                assert abs(perplexity(our_losses(model, scaling, ids[:length])) / theirs - 1) > APART, (length, scaling)
