"""A checkpoint that came with a scaling is extended from there, by every stage; or from plain RoPE where asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ropewalk.models.base import BaseModel, describe, load_model, window_before
from ropewalk.models.published import published_scaling
from ropewalk.rope import RopeScaling, extend, methods
from tiny_models import WINDOW, tiny_llama, tiny_phi3, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

FOUR = {"factor": 4.0, "original_max_position_embeddings": WINDOW}
LONG = [1.0, 1.5, 3.0, 5.0]
CHECKPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "yarn": (tiny_llama, {"rope_type": "yarn", **FOUR}),
    "linear": (tiny_llama, {"rope_type": "linear", "factor": 4.0}),
    "llama3": (tiny_llama, {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **FOUR}),
    "longrope": (
        tiny_phi3,
        {
            "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": LONG,
            "partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW,
        },
    ),
}  # fmt: skip


def saved(kind: str, folder: Path) -> str:
    build, rope = CHECKPOINTS[kind]
    build(rope_parameters={"rope_theta": 10_000.0, **rope}, max_position_embeddings=4 * WINDOW).save_pretrained(folder)
    return str(folder)


def described(path: str, **options: Any) -> BaseModel:
    base = describe(load_model(path), name="own", path=path, original_length=None, **options)
    # As the stage writes it and the later ones read it.
    assert BaseModel.from_json(base.to_json()) == base
    return base


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_scaling_of_a_checkpoint_is_where_the_pipeline_starts(tmp_path: Path, kind: str) -> None:
    path = saved(kind, tmp_path)
    base, model, ids = described(path), load_model(path), token_rows(2 * WINDOW)
    start_scaling = base.start_scaling
    assert start_scaling is not None
    assert (start_scaling.original_length, base.window) == (WINDOW, 4 * WINDOW)
    assert base.original_length == WINDOW
    assert window_before(path, start="checkpoint", original_length=None) == 4 * WINDOW
    assert base.start_switch is not None
    assert len(base.start_switch) == (2 if kind == "longrope" else 1)
    with torch.no_grad():
        before = model(ids).logits
        assert relative_error(extend(model, start_scaling)(ids).logits, before) < tiny_rounding(2 * WINDOW)


def test_it_starts_from_plain_rope_where_asked_and_where_a_checkpoint_has_no_scaling(tmp_path: Path) -> None:
    path = saved("yarn", tmp_path / "yarn")
    base = described(path, start="plain")
    assert base.start_scaling is None
    assert base.window == WINDOW
    assert window_before(path, start="plain", original_length=None) == WINDOW
    tiny_llama().save_pretrained(tmp_path / "plain")
    plain = described(str(tmp_path / "plain")).to_dict()
    assert plain.keys() == base.to_dict().keys()
    assert not {"start", "window"} & plain.keys()
    # Dynamic NTK comes after training: the weights know plain RoPE only.
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    tiny_llama(rope_parameters=dynamic).save_pretrained(tmp_path / "dynamic")
    assert described(str(tmp_path / "dynamic")).start_scaling is None


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_original_length_that_is_given_always_wins(tmp_path: Path, kind: str) -> None:
    path = saved(kind, tmp_path)
    switch = published_scaling(path, original_length=WINDOW // 2).start
    assert switch is not None
    assert switch.longest.original_length == WINDOW // 2
    # The window after linear scaling follows from the one before it; elsewhere the config states it by itself.
    assert switch.lengths[-1] == (2 * WINDOW if kind == "linear" else 4 * WINDOW)
    stated = published_scaling(path).start
    assert stated is not None
    assert switch.longest.factors == stated.longest.factors
    assert window_before(path, start="plain", original_length=100) == 100


@pytest.mark.parametrize(
    ("kind", "reading", "windows", "other", "otherwise"),
    [
        ("linear", "after linear", (WINDOW, 4 * WINDOW), 4 * WINDOW, 16 * WINDOW),
        ("dynamic", "before dynamic", (4 * WINDOW, 4 * WINDOW), WINDOW, WINDOW),
    ],
)
def test_the_reading_of_an_ambiguous_window_is_told_with_the_other_one(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    reading: str,
    windows: tuple[int, int],
    other: int,
    otherwise: int,
) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0}
    tiny_llama(rope_parameters=rope, max_position_embeddings=4 * WINDOW).save_pretrained(tmp_path)
    options: dict[str, Any] = {"start": "checkpoint", "original_length": None}
    before = window_before(str(tmp_path), start="plain", original_length=None)
    assert (before, window_before(str(tmp_path), **options)) == windows
    (message,) = {record.getMessage() for record in caplog.records}
    assert f"read as the window {reading} scaling by 4, which leads from {windows[0]} to" in message
    assert message.endswith(f"where it is meant otherwise, give model.original_length={other}")
    caplog.clear()
    assert window_before(str(tmp_path), **options | {"original_length": other}) == otherwise
    assert not caplog.records


def test_a_model_given_by_its_path_alone_is_called_by_its_folder(tmp_path: Path) -> None:
    path = saved("linear", tmp_path / "my-model")
    assert describe(load_model(path), name="hf", path=path, original_length=None).name == "my-model"
    assert described(path).name == "own"


def test_an_unknown_scaling_is_refused(tmp_path: Path) -> None:
    path = saved("linear", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "perpetual"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown kind of scaling 'perpetual'; transformers knows default"):
        published_scaling(path)


def test_llama_3s_window_is_what_its_config_says_whatever_its_ratio(tmp_path: Path) -> None:
    path = saved("llama3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16 * WINDOW}))
    switch = published_scaling(path).start
    assert switch is not None
    ((up_to, scaling),) = switch
    expected = methods.llama3(rotary_dim=16, base=1e4, original_length=WINDOW, target_length=4 * WINDOW)
    assert up_to == scaling.target_length == 16 * WINDOW
    assert scaling.factors == pytest.approx(expected.factors)


def test_what_is_found_multiplies_the_checkpoints_factors(tmp_path: Path) -> None:
    start_scaling = described(saved("longrope", tmp_path)).start_scaling
    assert start_scaling is not None
    both = start_scaling.then(RopeScaling((1.0, 1.0, 2.0, 2.0), 4 * WINDOW, 8 * WINDOW, attention_factor=1.3))
    assert both.factors == (1.0, 1.5, 6.0, 10.0)
    assert (both.original_length, both.target_length, both.attention_factor) == (WINDOW, 8 * WINDOW, 1.3)


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW}
_LINEAR = {"rope_type": "linear", "factor": 4.0}
_TWO_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "HunYuan, whose alpha is another base at any length": (
        "hunyuan_v1_dense",
        {},
        {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 10_000.0},
    ),
    "DeepSeek-V3, whose attention reads mscale_all_dim too": (
        "deepseek_v3",
        {
            "head_dim": 8, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 2,
        },
        {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "gpt-oss, which does not truncate": (
        "gpt_oss",
        {**_TWO_TYPES, "num_local_experts": 4, "num_experts_per_tok": 2},
        {**_YARN, "truncate": False},
    ),
    "GLM-4, which rotates half of a head": ("glm4", {}, _YARN),
    "OLMo-3, whose full-attention layers are scaled": ("olmo3", _TWO_TYPES, _YARN),
    "Gemma-3, whose full-attention layers are scaled": ("gemma3_text", _TWO_TYPES, _LINEAR),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_the_scaling_that_is_read_leaves_the_logits_of_the_class(tmp_path: Path, name: str) -> None:
    kind, changes, rope = CLASSES[name]
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4 * WINDOW, "pad_token_id": 2,
    }  # fmt: skip
    config = CONFIG_MAPPING[kind](**sizes | changes, rope_scaling=dict(rope))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    switch = published_scaling(str(tmp_path)).start
    assert switch is not None
    model, ids = load_model(str(tmp_path)), token_rows(2 * WINDOW)
    with torch.no_grad():
        before = model(ids).logits
        assert relative_error(extend(model, switch.longest)(ids).logits, before) < tiny_rounding(2 * WINDOW)
        plain = replace(switch.longest, factors=(1.0,) * len(switch.longest.factors), attention_factor=1.0)
        assert relative_error(extend(model, plain)(ids).logits, before) > 10 * tiny_rounding(2 * WINDOW)
