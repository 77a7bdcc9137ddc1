"""Whether a model can be extended, trained, exported and written as GGUF is told from config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from models.published_configs import CHECKPOINTS
from ropewalk.composition import composed
from ropewalk.consistency import check_capability
from ropewalk.models.capability import Capability, capability

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "pad_token_id": 2}
SLIDING = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "sliding_window": 16,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
CHUNKED = {**SLIDING, "attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention"]}


def told(folder: Path, config: dict[str, Any], **options: Any) -> Capability:
    (folder / "config.json").write_text(json.dumps(config))
    return capability(str(folder), **options)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_can_be_extended_trained_and_exported(tmp_path: Path, name: str) -> None:
    result = told(tmp_path, CHECKPOINTS[name].config)
    assert (result.extended, result.trained, result.exported) == (None, None, None)
    is_of_llama_cpp = CHECKPOINTS[name].config["model_type"] in ("llama", "mistral", "phi3")
    assert (result.written_as_gguf is None) == is_of_llama_cpp


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt2", {}, "GPT2LMHeadModel has no rotary position embedding; only RoPE models can be extended"),
        ("gptj", {}, "GPTJForCausalLM rotates by a fixed table of sines, which has no frequencies that could be"),
        ("mamba", {}, "MambaForCausalLM has no rotary position embedding"),
        (
            "cohere2",
            SLIDING,
            "Cohere2ForCausalLM rotates only in layers that read no further than a window of 16 tokens;",
        ),
        ("llama4_text", {**CHUNKED, "no_rope_layers": [1, 0]}, "no further than a window of 16 tokens;"),
        ("exaone4", SLIDING, "no further than a window of 16 tokens;"),
        (
            "cohere2",
            {**SLIDING, "layer_types": ["sliding_attention"] * 2},
            "no further than a window of 16 tokens;",
        ),
        (
            "cohere2",
            {**SLIDING, "sliding_window": None},
            "Cohere2ForCausalLM rotates in no layer where sliding_window in config.json is null, so there is nothing",
        ),
        (
            "recurrent_gemma",
            {"num_hidden_layers": 3},
            "states no max_position_embeddings, so the window is unknown; add",
        ),
        ("t5", {}, "transformers has no causal language model of the type t5"),
        ("llama", {"rope_parameters": {"rope_type": "alibi"}}, "unknown kind of scaling 'alibi'; transformers knows"),
    ],
)
def test_what_cannot_be_extended_is_told_with_a_fact_about_the_model(
    tmp_path: Path, kind: str, changes: dict[str, Any], reason: str
) -> None:
    result = told(tmp_path, {"model_type": kind, "num_hidden_layers": 2, **SIZES, **changes})
    assert result.extended is not None
    assert result.extended.startswith(reason) or reason in result.extended
    assert {why for _, why in result} == {result.extended}
    assert "\n" not in result.extended


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", SLIDING),
        ("gemma3_text", SLIDING),
        ("gpt_oss", {**SLIDING, "num_local_experts": 4}),
        ("olmo3", SLIDING),
        ("smollm3", {"num_hidden_layers": 4}),
        ("exaone4", {"num_hidden_layers": 2, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
        ("qwen3_next", {"num_hidden_layers": 4}),
    ],
)
def test_layers_that_read_the_whole_input_by_rotation_can_be_extended(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    assert told(tmp_path, {"model_type": kind, **SIZES, **changes}).extended is None


@pytest.mark.parametrize("kind", ["qwen2_vl", "mistral3", "llava"])
def test_a_model_that_also_sees_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    reason = capability(str(tmp_path)).extended
    assert reason is not None
    assert reason.endswith(
        "; save its language model as a checkpoint of its own, with the text_config as config.json, and extend that"
    )


def test_quantised_weights_are_neither_trained_nor_exported(tmp_path: Path) -> None:
    config = {**CHECKPOINTS["Qwen3-8B"].config, "quantization_config": {"quant_method": "fp8"}}
    result = told(tmp_path, config)
    assert result.extended is None
    assert result.trained == result.exported == result.written_as_gguf
    assert (
        result.trained == "its weights are quantised (fp8); give a checkpoint of the weights that they were made from"
    )


def test_a_sliding_window_that_is_kept_is_not_written_as_gguf(tmp_path: Path) -> None:
    config = CHECKPOINTS["Mistral-7B-v0.1"].config
    assert told(tmp_path, config).written_as_gguf is None
    kept = told(tmp_path, config, keep_sliding_window=True).written_as_gguf
    assert kept is not None
    assert "sliding-window attention" in kept


def test_a_class_whose_defaults_leave_out_the_size_of_a_head_can_be_exported(tmp_path: Path) -> None:
    assert told(tmp_path, {"model_type": "mixtral", "head_dim": None, **SIZES}).exported is None


def test_every_default_config_of_the_library_is_answered_in_one_line(tmp_path: Path) -> None:
    for kind in ("llama", "deepseek_v2", "falcon_h1", "bamba", "glm4_moe", "ernie4_5", "persimmon", "xlnet", "whisper"):
        (tmp_path / "config.json").write_text(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
        assert all(reason is None or "\n" not in reason for _, reason in capability(str(tmp_path)))


@pytest.mark.parametrize(
    ("refused", "changes", "expected"),
    [
        ("trained", {}, "model.path m cannot be trained: R"),
        ("exported", {}, "model.path m cannot be exported: R"),
        ("written_as_gguf", {"gguf": "float16"}, "model.path m cannot be written as GGUF: R"),
        ("written_as_gguf", {"gguf": None}, None),
    ],
)
def test_only_what_the_pipeline_does_is_refused(refused: str, changes: dict[str, Any], expected: str | None) -> None:
    config = composed(["output=out", "work=work"])
    config.model.path = "m"
    config.export.gguf = changes.get("gguf")
    reasons: dict[str, str | None] = dict.fromkeys(("extended", "trained", "exported", "written_as_gguf"))
    able = Capability(**{**reasons, refused: "R"})
    if expected is None:
        check_capability(config, able)
        return
    with pytest.raises(ValueError, match=f"{expected}$"):
        check_capability(config, able)
