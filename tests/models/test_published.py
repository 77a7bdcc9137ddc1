"""Scalings are read from published checkpoints and tables as transformers applies them, and extended further."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.models.published import published_scaling, published_table
from ropewalk.rope import RopeScaling, extend, methods, rotary_shape
from tiny_models import WINDOW, tiny_llama, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

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
    published = published_scaling(written(tmp_path, **section))
    config = LlamaConfig(**{**SIZES, "rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}})
    for up_to, scaling in published.switch:
        expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=up_to)
        plain = torch.tensor(methods.inverse_frequencies(16, 10_000.0))
        torch.testing.assert_close(plain / torch.tensor(scaling.factors), expected, rtol=1e-5, atol=0)
        assert scaling.attention_factor == pytest.approx(attention_factor)
    assert len(published.switch) == (2 if kind == "longrope" else 1)


def test_phi_3s_own_spelling_is_longrope(tmp_path: Path) -> None:
    written(
        tmp_path, max_position_embeddings=1024, original_max_position_embeddings=32,
        rope_scaling={"type": "su", "short_factor": SHORT, "long_factor": LONG},
    )  # fmt: skip
    published = published_scaling(tmp_path)
    assert published.switch.lengths == (32, 1024)
    assert published.switch.scalings[0].factors == tuple(SHORT)
    assert published.scaling.factors == tuple(LONG)
    # sqrt(1 + ln 32 / ln 32), for both.
    assert [scaling.attention_factor for scaling in published.switch.scalings] == pytest.approx([2**0.5] * 2)


def test_a_checkpoint_is_extended_further_from_its_scaling(tmp_path: Path) -> None:
    model = tiny_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0})
    model.save_pretrained(tmp_path)
    published = published_scaling(tmp_path, original_length=WINDOW)
    ids = token_rows(2 * WINDOW)
    with torch.no_grad():
        before = model(ids).logits
        # As it was, and then by YaRN from its window of 128 to 512.
        assert relative_error(extend(model, published.scaling)(ids).logits, before) < tiny_rounding(2 * WINDOW)
    more = methods.yarn(rotary_dim=16, base=10_000.0, original_length=2 * WINDOW, target_length=8 * WINDOW)
    both = published.scaling.then(more)
    assert both.factors == pytest.approx([2.0 * factor for factor in more.factors])
    assert (both.original_length, both.target_length, rotary_shape(model).rotary_dim) == (WINDOW, 8 * WINDOW, 16)
    with torch.no_grad():
        assert relative_error(extend(model, both)(ids).logits, before) > 100 * tiny_rounding(2 * WINDOW)


def test_a_published_table_is_a_scaling_of_its_lengths(shared: Path) -> None:
    file = shared / "data" / "factors" / "256k_la2_128k.csv"
    published = published_table(file, base=10_000.0, original_length=4096, target_length=262_144)
    assert published.scaling == RopeScaling.from_csv(file, original_length=4096, target_length=262_144)
    assert published.shape.rotary_dim == 128


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "alibi", "factor": 2.0}}, "unknown kind of scaling 'alibi'; transformers knows def"),
        (
            {"rope_scaling": {"factor": 2.0}},
            "rope_scaling has a factor and no rope_type, which transformers reads as plain",
        ),
        ({"rope_scaling": {"type": "linear"}}, "Missing required keys .*'linear': {'factor'}"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": LONG}}, "1 rescale factors"),
        ({"rope_scaling": "linear"}, "rope_scaling must hold the keys of a scaling, or null for none, found 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be a number from 1, found 0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor must be a number from 1, found '4'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "rope_theta must be a number above 0, found 0"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": [0.0, *LONG[1:]]}},
            "long_factor must be a number above 0, found 0.0",
        ),
        ({"rope_theta": None}, "rope_theta must be a number above 0, found None"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor must be a number above 0 and up to 1, found 2.0"),
        (
            {"max_position_embeddings": None},
            "max_position_embeddings is null, so the window is unknown; state it in con",
        ),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be above 0, found -1"),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers must be above 0, found 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads, found 4 and 3"),
        ({"model_type": ["llama"]}, r"model_type must be a name, found \['llama'\]"),
        ({"hidden_size": None}, "'hidden_size' expected int, got NoneType"),
        ({"num_attention_heads": 5}, r"hidden size \(64\) is not a multiple of the number of attention heads"),
        ({"model_type": "gpt2"}, "GPT2LMHeadModel has no rotary position embedding"),
        ({"model_type": "t5"}, "no causal language model of the type t5"),
        ({"model_type": "perpetuum"}, "does not recognize this architecture"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        published_scaling(written(tmp_path, **config))
    assert str(caught.value).startswith(f"model.path {tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_a_window_that_config_json_leaves_to_its_class_is_told(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    published = published_scaling(tmp_path)
    assert published.shape.original_length == 2048
    assert published.reading == (
        "config.json states no max_position_embeddings, so the default of LlamaConfig, 2048 tokens, is taken; where "
        "the window is another, give model.original_length"
    )
    assert published_scaling(tmp_path, original_length=128).reading is None
    assert published_scaling(written(tmp_path)).reading is None


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json; give a folder that transformers saved"):
        published_scaling(tmp_path)
