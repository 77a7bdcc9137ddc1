"""The published config.json of well-known checkpoints comes out as their cards say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from models.published_configs import CHECKPOINTS
from ropewalk.models.published import PublishedScaling, published_scaling

pytestmark = pytest.mark.numeric


def read(folder: Path, config: dict[str, Any], **options: Any) -> PublishedScaling:
    (folder / "config.json").write_text(json.dumps(config))
    return published_scaling(folder, **options)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_is_read_as_its_card_says(tmp_path: Path, name: str) -> None:
    expected = CHECKPOINTS[name]
    published = read(tmp_path, expected.config)
    shape = (published.shape.rotary_dim, published.shape.base, published.shape.original_length)
    assert shape == (expected.rotary_dim, expected.base, expected.original_length)
    start = published.start.longest if published.start else None
    assert (start.target_length if start else published.shape.original_length) == expected.window
    assert published.scaling.method == expected.method
    if start is None:
        assert (expected.method, expected.last_factor, expected.attention_factor) == ("none", 1.0, 1.0)
    else:
        assert start.factors[-1] == pytest.approx(expected.last_factor, rel=1e-5)
        assert start.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("gemma-3-4b", "131072 is read as the window after linear scaling by 8, which leads from 16384 to 131072"),
        ("Mistral-7B-v0.1", "32768 is read as longer than the model was trained for, whose attention kept within 4096"),
        ("Qwen2.5-7B-Instruct-1M", "1010000 is read as longer .* kept within 262144 .*=1010000"),
        ("c4ai-command-r-v01", "8192 is read as shorter than .* model_max_length 131072; .*=8192"),
    ],
)
def test_a_window_that_can_be_read_in_two_ways_is_told(tmp_path: Path, name: str, reading: str) -> None:
    config = CHECKPOINTS[name].config
    line = read(tmp_path, config).reading
    assert line is not None
    assert re.search(reading, line), line
    assert read(tmp_path, config, original_length=8192).reading is None
    assert read(tmp_path, config, original_length=8192).shape.original_length == 8192


def test_a_window_that_is_stated_twice_has_one_reading(tmp_path: Path) -> None:
    assert read(tmp_path, CHECKPOINTS["vicuna-7b-v1.5-16k"].config).reading is None


def test_phi_3_5_has_both_of_its_lists(tmp_path: Path) -> None:
    config = CHECKPOINTS["Phi-3.5-mini-instruct"].config
    start = read(tmp_path, config).start
    assert start is not None
    assert start.lengths == (4096, 131_072)
    for scaling, name in zip(start.scalings, ("short_factor", "long_factor"), strict=True):
        assert scaling.factors == pytest.approx(config["rope_scaling"][name], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "rotary_dim", "base"),
    [
        ("glm4", {"head_dim": 128}, 64, 10_000.0),
        ("phi", {}, 64, 10_000.0),
        ("mixtral", {}, 128, 1e6),
        ("minimax", {}, 128, 1e6),
        ("qwen3_next", {"head_dim": 128}, 32, 10_000.0),
    ],
)
def test_keys_that_are_left_out_have_the_defaults_of_their_class(
    tmp_path: Path, kind: str, changes: dict[str, Any], rotary_dim: int, base: float
) -> None:
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    published = read(tmp_path, {"model_type": kind, **sizes, **changes})
    assert (published.shape.rotary_dim, published.shape.base) == (rotary_dim, base)


def test_only_the_full_attention_layers_of_gemma_3_are_scaled(tmp_path: Path) -> None:
    """In the first spelling: one rope_scaling, and a second base for the sliding layers beside it."""
    text = {
        "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "sliding_window": 16, "sliding_window_pattern": 6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    for config in (text, {"model_type": "gemma3", "text_config": text}):
        published = read(tmp_path, config)
        assert published.start is not None
        assert published.shape.base == 1e6
        assert (published.shape.original_length, published.start.lengths) == (64, (512,))
        assert published.scaling.factors == (8.0,) * 8
