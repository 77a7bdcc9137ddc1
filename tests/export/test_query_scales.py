"""An export holds query scales in its weights, and its scalings have none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ropewalk.export import export_checkpoint, load_extended, model_card
from ropewalk.export.gguf import export_gguf
from ropewalk.export.load import read_switch
from ropewalk.rope import LengthSwitch, RopeScaling, current_scaling, extend
from ropewalk.rope.query_scales import query_scales
from tiny_models import ROPE_MODELS, WINDOW, byte_tokenizer, tiny_base, tiny_llama, tiny_rounding, token_rows
from tolerances import relative_error
from zoo_models import tiny_model

from .conftest import switch_for

pytestmark = pytest.mark.numeric

MODELS = ROPE_MODELS | {"gemma3": lambda: tiny_model("gemma3_text")}
"""Matrices alone and fused, with biases, partly rotated, and norms that all heads share."""


def scaled_switch(model: Any, *, n_hat: int = 0) -> LengthSwitch:
    """The switch of the other tests with a scale per head, or per layer where heads have them in common."""
    scales = query_scales(model)
    shape = (scales.layers, 1 if scales.is_shared else scales.heads)
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(0)).expand(-1, scales.heads) + 0.5
    table = tuple(map(tuple, numbers.tolist()))
    switch = switch_for(model, n_hat=n_hat)
    return LengthSwitch(tuple((up_to, replace(scaling, query_scales=table)) for up_to, scaling in switch))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_plain_transformers_gives_the_logits_under_query_scales(name: str, tmp_path: Path) -> None:
    model, length = MODELS[name]().eval(), 4 * WINDOW
    switch = scaled_switch(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = extend(model, switch.longest)(token_rows(length)).logits
    export_checkpoint(model, byte_tokenizer(), switch, tmp_path / "model", card="card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert relative_error(loaded(token_rows(length)).logits, ours) < tiny_rounding(length)
    assert read_switch(tmp_path / "model") == switch.without_query_scales
    # The model in memory is what it was.
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert current_scaling(model) == switch.longest
    assert torch.equal(model(token_rows(length)).logits, ours)


@torch.no_grad()
def test_load_extended_applies_the_scales_once_at_every_length(tmp_path: Path) -> None:
    model = tiny_llama()
    switch = scaled_switch(model, n_hat=4)
    export_checkpoint(model, byte_tokenizer(), switch, tmp_path / "model", card="card")
    loaded = load_extended(tmp_path / "model").eval()
    for length in (WINDOW, 4 * WINDOW):
        ours = extend(model, switch.for_length(length))(token_rows(length)).logits
        assert relative_error(loaded(token_rows(length)).logits, ours) < tiny_rounding(length)


def test_scales_are_multiplied_into_weights_in_float32_and_rounded_once(tmp_path: Path) -> None:
    model = tiny_llama()
    switch = scaled_switch(model)
    export_checkpoint(model, byte_tokenizer(), switch, tmp_path / "model", card="card", dtype="bfloat16")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert switch.longest.query_scales is not None
    for layer, scales in enumerate(switch.longest.query_scales):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        rows = torch.tensor(scales).repeat_interleave(16)[:, None]
        assert torch.equal(written[name], (model.state_dict()[name] * rows).bfloat16())


def test_a_gguf_file_holds_the_folded_weights(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    tokenizer = byte_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer), bos_token_id=256, eos_token_id=257, pad_token_id=None)
    switch = scaled_switch(model)
    for name, scalings in (("plain", switch.without_query_scales), ("scaled", switch)):
        export_checkpoint(model, tokenizer, scalings, tmp_path / name, card="card")
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf", dtype="float32")
    plain, scaled = (
        {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("plain", "scaled")
    )
    assert switch.longest.query_scales is not None
    for layer, scales in enumerate(switch.longest.query_scales):
        queries = f"blk.{layer}.attn_q.weight"
        # The rows of a head are reordered, and all of them have its scale.
        rows = torch.tensor(scales).repeat_interleave(16)[:, None].numpy()
        assert scaled.pop(queries) == pytest.approx(plain[queries] * rows, rel=1e-6)
    assert all((tensor == plain[name]).all() for name, tensor in scaled.items())


def test_the_card_says_how_many_scales_the_weights_hold() -> None:
    switch = LengthSwitch(((WINDOW, RopeScaling((1.0,), WINDOW, WINDOW)),))
    options: dict[str, Any] = {"base": tiny_base(), "perplexity_rows": [], "passkey_rows": [], "how_made": {}}
    text = model_card(**options, switch=switch, extended="base", query_scales=((1.0, 1.2, 1.3, 0.9),) * 2)
    assert "queries of its 2 layers are multiplied by 8 learned scales, 4 in each" in text
    assert "No other weight was changed" in text
    assert "learned scales" not in model_card(**options, switch=switch, extended="base")
