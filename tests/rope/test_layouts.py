"""Models whose rotary module differs from Llama's, extended and against transformers' own scaled models.

Interleaved pairs (Cohere), complex numbers (DeepSeek-V2), a part of each head (GLM-4), multimodal axes (Qwen3.5), a
table per layer type (Gemma-3, OLMo-3), frequencies computed in every pass (Phi-3.5-MoE), and Mamba beside attention
(Falcon-H1).
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ropewalk.rope import (
    LengthSwitch,
    RopeScaling,
    RotaryEmbedding,
    current_scaling,
    extend,
    find_rotary,
    methods,
    model_scaling,
    rotary_shape,
)
from ropewalk.rope.switching import extend_by_length
from tiny_models import CLASS_SIZES, WINDOW, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

TARGET = 4 * WINDOW
_SIZES = {**CLASS_SIZES, "attn_implementation": "eager"}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
_TWO_TYPES = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_chunk_size": 16}
CLASSES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "deepseek_v2": {**_LATENT, **_EXPERTS, "q_lora_rank": None, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "glm4": {"head_dim": 16},
    "qwen3_5_text": {"head_dim": 16, "layer_types": ["full_attention"] * 2},
    "gemma3_text": _TWO_TYPES,
    "olmo3": _TWO_TYPES,
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon_h1": {"head_dim": 16, **_MAMBA},
}
every_class = pytest.mark.parametrize("name", CLASSES)
per_layer_type = ("gemma3_text", "olmo3")


def tiny(name: str, **rope: Any) -> Any:
    """A random model of the class, its long-range table scaled by ``rope``."""
    config = CONFIG_MAPPING[name](**_SIZES | CLASSES[name])
    (config.rope_parameters["full_attention"] if name in per_layer_type else config.rope_parameters).update(rope)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def yarn(model: Any, **changes: Any) -> RopeScaling:
    scaling = methods.yarn(**vars(rotary_shape(model)), target_length=TARGET)
    return replace(scaling, **changes)


def logits(model: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(token_rows(TARGET) if rows is None else rows, use_cache=False).logits  # type: ignore[no-any-return]


@every_class
def test_a_plain_scaling_leaves_logits_to_the_bit(name: str) -> None:
    model = tiny(name)
    plain = logits(model)
    pairs = rotary_shape(model).rotary_dim // 2
    assert torch.equal(logits(extend(model, RopeScaling((1.0,) * pairs, WINDOW, TARGET))), plain)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "phimoe"])
def test_yarn_is_transformers_yarn(name: str) -> None:
    theirs = tiny(name, rope_type="yarn", factor=TARGET / WINDOW, original_max_position_embeddings=WINDOW)
    expected = logits(theirs)
    ours = extend(tiny(name), yarn(tiny(name)))
    assert relative_error(logits(ours), expected) < tiny_rounding(TARGET)
    assert relative_error(logits(tiny(name)), expected) > 100 * tiny_rounding(TARGET)
    assert relative_error(logits(extend(theirs, model_scaling(theirs))), expected) < tiny_rounding(TARGET)
    assert model_scaling(theirs).attention_factor == pytest.approx(yarn(ours).attention_factor)


def test_phi_moe_reads_its_factors_and_attention_factor_from_its_config() -> None:
    pairs = 8
    lists = {
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0 + 0.5 * i for i in range(pairs)],
    }
    scales = {"short_mscale": 1.1, "long_mscale": 1.3}
    theirs = tiny("phimoe", rope_type="longrope", original_max_position_embeddings=WINDOW, **lists, **scales)
    short = model_scaling(theirs, length=WINDOW)
    assert short.factors == pytest.approx(lists["short_factor"])
    assert short.attention_factor == pytest.approx(1.1)
    # transformers takes the short factors at every length.
    message = "PhimoeForCausalLM does not apply the scaling of its config to inputs of 65 tokens"
    with pytest.raises(ValueError, match=message):
        model_scaling(theirs, length=WINDOW + 1)
    rows = token_rows(WINDOW)
    expected = logits(theirs, rows)
    assert relative_error(logits(extend(theirs, short), rows), expected) < tiny_rounding(WINDOW)
    # The class would choose by its config, of which nothing must be left.
    other = replace(short, factors=(1.0,) * pairs, attention_factor=1.0)
    assert torch.equal(logits(extend(theirs, other)), logits(tiny("phimoe")))


@every_class
def test_gradients_reach_factors_and_attention_factor(name: str) -> None:
    model = tiny(name)
    rotary: Any = find_rotary(extend(model, yarn(model, n_hat=4)))[1]
    rotary.factors = rotary.factors.clone().requires_grad_()
    rotary.attention_factor = rotary.attention_factor.clone().requires_grad_()
    model(token_rows(32), use_cache=False).logits.square().sum().backward()
    assert rotary.factors.grad.abs().min() > 0
    assert rotary.attention_factor.grad.abs() > 0


@every_class
def test_n_hat_keeps_the_first_positions_as_they_were(name: str) -> None:
    plain, scaled = tiny(name), tiny(name)
    extend(scaled, yarn(scaled, n_hat=WINDOW, attention_factor=1.0))
    rows = token_rows(WINDOW + 1)
    assert torch.equal(logits(scaled, rows[:, :WINDOW]), logits(plain, rows[:, :WINDOW]))
    assert relative_error(logits(scaled, rows)[:, -1:], logits(plain, rows)[:, -1:]) > 10 * tiny_rounding(WINDOW)


@every_class
def test_a_copy_computes_the_same_and_is_apart(name: str) -> None:
    model = tiny(name)
    scaling = yarn(model)
    extend(model, scaling)
    expected = logits(model)
    extend(copied := deepcopy(model), replace(scaling, factors=(1.0,) * len(scaling.factors)))
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(copied), expected)
    assert current_scaling(model) == scaling


@every_class
def test_rows_of_a_batch_have_the_scaling_of_their_length(name: str) -> None:
    long = yarn(tiny(name))
    short = replace(long, factors=(1.0,) * len(long.factors), attention_factor=1.0)
    switching = find_rotary(extend_by_length(tiny(name), LengthSwitch(((WINDOW, short), (TARGET, long)))))[1]
    padded = torch.arange(-1, WINDOW).clamp(min=0)
    positions = torch.stack((padded, torch.arange(WINDOW + 1)))
    positions = positions.expand(3, -1, -1) if name == "qwen3_5_text" else positions
    options = {"layer_type": "full_attention"} if name in per_layer_type else {}
    both = _tables(switching(torch.zeros(2, 1), positions, **options))
    for row, scaling in enumerate((short, long)):
        alone = find_rotary(extend(tiny(name), scaling))[1]
        for actual, expected in zip(both, _tables(alone(torch.zeros(2, 1), positions, **options)), strict=True):
            assert torch.equal(actual[row], expected[row])


def _tables(computed: Any) -> tuple[torch.Tensor, ...]:
    return computed if isinstance(computed, tuple) else (computed,)


@pytest.mark.parametrize("name", per_layer_type)
def test_only_the_table_of_full_attention_layers_is_scaled(name: str) -> None:
    model = tiny(name)
    rotary = find_rotary(extend(model, yarn(model)))[1]
    assert isinstance(rotary, RotaryEmbedding)
    x, positions = torch.zeros(1), torch.arange(TARGET)[None]
    plain_rotary = find_rotary(tiny(name))[1]
    assert torch.equal(rotary(x, positions, "sliding_attention")[0], plain_rotary(x, positions, "sliding_attention")[0])
    assert not torch.equal(rotary(x, positions, "full_attention")[0], plain_rotary(x, positions, "full_attention")[0])
    assert rotary_shape(model).base == model.config.rope_parameters["full_attention"]["rope_theta"]


def test_layers_with_a_rotary_module_of_their_own_share_one_when_extended() -> None:
    model = tiny("cohere")
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = deepcopy(model.model.rotary_emb)
    extend(model, yarn(model))
    assert len({id(module) for module in model.modules() if isinstance(module, RotaryEmbedding)}) == 1
    assert all(isinstance(layer.self_attn.rotary_emb, RotaryEmbedding) for layer in model.model.layers)


def test_weights_of_a_rotary_module_keep_their_names() -> None:
    config = CONFIG_MAPPING["cohere"](**_SIZES)
    model = AutoModelForCausalLM.from_config(config)
    model.model.rotary_emb.alpha = torch.nn.Parameter(torch.ones(8))
    saved = extend(model, yarn(model)).state_dict()
    assert "model.rotary_emb.alpha" in saved
    saved["model.rotary_emb.alpha"] = torch.full((8,), 2.0)
    model.load_state_dict(saved)
    assert model.model.rotary_emb.rotary.alpha.tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gptj", {"n_embd": 32, "n_head": 2, "rotary_dim": 8}, "rotates by a fixed table of sines"),
        ("bloom", {"n_head": 2}, "has no rotary position embedding"),
        ("mamba", {}, "has no rotary position embedding"),
        ("beam", {}, "only in its layers of type sliding_attention"),
    ],
)
def test_a_model_that_rotates_by_no_frequencies_is_refused_with_its_reason(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](num_hidden_layers=2, **changes))
    with pytest.raises(ValueError, match=reason):
        extend(model, RopeScaling((1.0,) * 8, WINDOW, TARGET))
