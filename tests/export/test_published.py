"""Scalings are read from published checkpoints and tables as transformers applies them, and extended further."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.export import export_checkpoint
from ropewalk.export.published import published_scaling, published_table
from ropewalk.rope import RopeScaling, extend, methods, rotary_shape
from tiny_models import WINDOW, tiny_llama, token_rows

from .conftest import switch_for

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128, "rope_theta": 10_000.0}
SHORT = [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.4, 1.5]
LONG = [1.0, 1.2, 1.5, 2.5, 4.0, 5.5, 7.0, 8.0]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn with its own": {
        "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 16.0, "beta_slow": 2.0,
        "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.8,
    },
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128
    },
    "longrope": {
        "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 32, "factor": 4.0
    },
}  # fmt: skip


def written(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **config}))
    return folder


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoints_scaling_is_what_transformers_makes_of_it(tmp_path: Path, name: str, old: bool) -> None:
    kind, values = name.split()[0], SCALINGS[name]
    section = {"rope_scaling": {"type": kind, **values}} if old else {
        "rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}
    }  # fmt: skip
    found = published_scaling(written(tmp_path, **section))
    config = LlamaConfig(**{**SIZES, "rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}})
    for up_to, scaling in found.switch:
        expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=up_to)
        plain = torch.tensor(methods.inverse_frequencies(16, 10_000.0))
        torch.testing.assert_close(plain / torch.tensor(scaling.factors), expected, rtol=1e-5, atol=0)
        assert scaling.attention_factor == pytest.approx(attention_factor)
    assert len(found.switch) == (2 if kind == "longrope" else 1)


def test_phi_3s_own_spelling_is_longrope(tmp_path: Path) -> None:
    written(
        tmp_path, max_position_embeddings=1024, original_max_position_embeddings=32,
        rope_scaling={"type": "su", "short_factor": SHORT, "long_factor": LONG},
    )  # fmt: skip
    found = published_scaling(tmp_path)
    assert [up_to for up_to, _ in found.switch] == [32, 1024]
    assert found.switch[0][1].factors == tuple(SHORT)
    assert found.scaling.factors == tuple(LONG)
    # sqrt(1 + ln 32 / ln 32), for both.
    assert [scaling.attention_factor for _, scaling in found.switch] == pytest.approx([2**0.5] * 2)


def test_an_export_of_ours_is_read_back(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    switch = switch_for(llama, n_hat=0)
    export_checkpoint(llama, tokenizer, switch, tmp_path / "model", card="")
    assert published_scaling(tmp_path / "model").switch == (switch[-1],)


def test_a_checkpoint_is_extended_further_from_its_scaling(tmp_path: Path) -> None:
    model = tiny_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0})
    model.save_pretrained(tmp_path)
    found = published_scaling(tmp_path)
    ids = token_rows(2 * WINDOW)
    with torch.no_grad():
        before = model(ids).logits
        # As it was, and then by YaRN from its window of 128 to 512.
        torch.testing.assert_close(extend(model, found.scaling)(ids).logits, before, atol=1e-4, rtol=1e-4)
    more = methods.yarn(rotary_dim=16, base=10_000.0, original_length=2 * WINDOW, target_length=8 * WINDOW)
    both = found.scaling.then(more)
    assert both.factors == pytest.approx([2.0 * factor for factor in more.factors])
    assert (both.original_length, both.target_length, rotary_shape(model).rotary_dim) == (WINDOW, 8 * WINDOW, 16)
    with torch.no_grad():
        assert not torch.allclose(extend(model, both)(ids).logits, before, atol=1e-2)


def test_a_published_table_is_a_scaling_of_its_lengths(shared: Path) -> None:
    file = shared / "data" / "factors" / "256k_la2_128k.csv"
    found = published_table(file, base=10_000.0, original_length=4096, target_length=262_144)
    assert found.scaling == RopeScaling.from_csv(file, original_length=4096, target_length=262_144)
    assert found.shape.rotary_dim == 128


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "alibi", "factor": 2.0}}, "unknown kind of scaling 'alibi'; known are default"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": LONG}}, "1 rescale factors"),
        ({"rope_parameters": {"full": {"rope_type": "default"}}}, "per layer type"),
        ({"hidden_size": None}, "unsupported operand"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        published_scaling(written(tmp_path, **config))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a folder with a checkpoint"):
        published_scaling(tmp_path)
