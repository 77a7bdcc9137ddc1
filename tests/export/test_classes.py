"""Exports of classes that read more of their config than a rotary table give the logits in memory, or are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ropewalk
from ropewalk.export import export_checkpoint
from ropewalk.files import read_json
from ropewalk.models import longrope_config
from ropewalk.models.base import load_model
from ropewalk.rope import LengthSwitch, RopeScaling, extend, methods, model_scaling, rotary_shape
from tiny_models import CLASS_SIZES, WINDOW, tiny_llama, tiny_mistral, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

_SIZES = {**CLASS_SIZES, "num_key_value_heads": 4}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "original_max_position_embeddings": WINDOW}
_MSCALE = {"mscale": 1.0, "mscale_all_dim": 1.0}
_EXPERTS: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "head_dim": 16}
_PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax scale from the section": (
        "deepseek_v3",
        {**_MLA, **_EXPERTS, "first_k_dense_replace": 2, "rope_parameters": {**_YARN, **_MSCALE}},
    ),
    "pairs as complex numbers": ("deepseek_v2", {**_MLA, "first_k_dense_replace": 2, "rope_parameters": dict(_YARN)}),
    "query scale from the section": (
        "ministral3",
        {"head_dim": 16, "rope_parameters": {**_YARN, **_MSCALE, "llama_4_scaling_beta": 0.1}},
    ),
    "fixed alpha": (
        "hunyuan_v1_dense",
        {"head_dim": 16, "rope_parameters": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "rope_theta": 1e4}},
    ),
    "a table per layer type": ("gemma3_text", _MIXED),
    "pairs at rest": ("gemma4_text", {**_MIXED, "global_head_dim": 32, "num_kv_shared_layers": 0, **_PER_LAYER}),
    "part of a head by default": ("glm4", {"head_dim": 16}),
    "a base by default": ("mixtral", {"num_local_experts": 2}),
    "multimodal axes": ("qwen3_5_text", {"head_dim": 16, "layer_types": ["full_attention"] * 2}),
}


def tiny(name: str, **changes: Any) -> Any:
    model_type, values = CLASSES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_SIZES, **values, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def switch_over(model: Any) -> LengthSwitch:
    """The model's own scaling, stretched beyond twice its window, with n_hat up to there."""
    scaling = model_scaling(model)
    second = methods.yarn(**vars(rotary_shape(model)), target_length=4 * WINDOW)
    long = RopeScaling(scaling.factors, WINDOW, WINDOW, attention_factor=scaling.attention_factor).then(second)
    short = RopeScaling(long.factors, WINDOW, 2 * WINDOW, n_hat=4, attention_factor=long.attention_factor)
    return LengthSwitch(((2 * WINDOW, short), (4 * WINDOW, long)))


@torch.no_grad()
def differences(model: Any, loaded: Any, scalings: Mapping[int, RopeScaling]) -> list[float]:
    """Relative errors of ``loaded``'s logits, by length of input; those in memory are under ``scalings``."""
    rows = {length: token_rows(length, rows=1) for length in scalings}
    return [
        relative_error(loaded(rows[length]).logits, extend(model, scaling)(rows[length]).logits) / tiny_rounding(length)
        for length, scaling in scalings.items()
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_an_export_gives_the_logits_in_memory(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny(name)
    switch = switch_over(model)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="")
    lengths = (WINDOW // 2, WINDOW + 1, 3 * WINDOW)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert max(differences(model, plain, dict.fromkeys(lengths, switch.longest))) < 1
    exact = ropewalk.load_extended(tmp_path / "model").eval()
    assert max(differences(model, exact, {length: switch.for_length(length) for length in lengths})) < 1


def test_a_deepseek_checkpoint_keeps_its_softmax_scale(tokenizer: Any, tmp_path: Path) -> None:
    name = "softmax scale from the section"
    tiny(name, max_position_embeddings=40 * WINDOW).save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    scaling = model_scaling(model)
    assert (scaling.target_length, scaling.attention_factor) == (40 * WINDOW, 1.0)
    export_checkpoint(model, tokenizer, LengthSwitch(((40 * WINDOW, scaling),)), tmp_path / "model", card="")
    plain, exported = (AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval() for folder in ("base", "model"))
    # 24 ** -0.5 times the square of 0.1 ln 40 + 1.
    assert exported.model.layers[0].self_attn.scaling == pytest.approx(0.3825, abs=1e-4)
    ids = token_rows(300, rows=1)
    with torch.no_grad():
        assert relative_error(exported(ids).logits, plain(ids).logits) < tiny_rounding(300)


def test_an_export_that_gives_other_logits_is_refused_and_not_left_behind(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longrope_config, "_softmax_scale", lambda old, ratio: {})
    model = tiny("softmax scale from the section")
    with pytest.raises(ValueError, match="DeepseekV3ForCausalLM at") as raised:
        export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="")
    assert "reloaded with plain transformers differ by" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_a_class_cannot_apply_is_refused_before_anything_is_written(tokenizer: Any, tmp_path: Path) -> None:
    config = AutoConfig.for_model("phimoe", **_SIZES, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    switch = switch_over(model)
    for_window = RopeScaling((1.0,) * (switch.longest.rotary_dim // 2), WINDOW, WINDOW)
    two_sets = LengthSwitch(((WINDOW, for_window), *switch.entries[1:]))
    with pytest.raises(ValueError, match="PhimoeForCausalLM cannot be exported: its rotary module does not apply"):
        export_checkpoint(model, tokenizer, two_sets, tmp_path / "model", card="", short_factor="recovered")
    # Its attention counts from a window other than that at which the two sets would change.
    ministral = tiny("query scale from the section", max_position_embeddings=WINDOW)
    half = RopeScaling(two_sets.scalings[0].factors[:8], WINDOW // 2, WINDOW // 2)
    long = RopeScaling((2.0,) * 8, WINDOW // 2, 4 * WINDOW)
    two_sets = LengthSwitch(((WINDOW // 2, half), (4 * WINDOW, long)))
    with pytest.raises(ValueError, match="counts in steps of 64 tokens"):
        export_checkpoint(ministral, tokenizer, two_sets, tmp_path / "model", card="", short_factor="recovered")
    assert not list(tmp_path.iterdir())
    export_checkpoint(ministral, tokenizer, two_sets, tmp_path / "model", card="")


def test_a_sliding_window_that_was_turned_off_stays_off(tokenizer: Any, tmp_path: Path) -> None:
    tiny_mistral(sliding_window=16).save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="")
    assert AutoConfig.from_pretrained(tmp_path / "model").sliding_window is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_trained_in_float32_come_out_in_the_type_asked_for(tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    for tied in (False, True):
        model = tiny_llama(tie_word_embeddings=tied)
        export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="", dtype=dtype)
        assert read_json(tmp_path / "model" / "config.json")["dtype"] == dtype
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, dtype)}
        assert model.dtype == torch.float32
        expected = model.state_dict()
        assert all(torch.equal(value, expected[name].to(value)) for name, value in loaded.state_dict().items())


def test_what_a_class_keeps_in_float32_is_exported_in_it(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("softmax scale from the section", first_k_dense_replace=0, moe_intermediate_size=32)
    export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="", dtype="bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    router = "model.layers.0.mlp.gate.weight"
    assert torch.equal(loaded[router], model.state_dict()[router])
    assert loaded["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_weight_that_float16_cannot_hold_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(
        ValueError, match=r"lm_head\.weight is not what it is in memory after reloading in torch.float16"
    ):
        export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="", dtype="float16")


def test_a_model_in_training_mode_is_exported_and_stays_in_it(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_llama(attention_dropout=0.5).train()
    export_checkpoint(model, tokenizer, switch_over(model), tmp_path / "model", card="")
    assert model.training
