"""A tiny random model of every causal language model class of the installed transformers.

A class's default config is shrunk by the names of its attributes; what does not follow from a name stands in
`EXCEPTIONS`. Every kind of layer that the default config has is kept, one of each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WINDOW = 64
"""Window of every tiny model in tokens."""
SLIDING = 40
"""Window of its sliding attention, where it has any."""
VOCABULARY = 272

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_HIDDEN, _HEADS, _HEAD_DIM, _INNER = 64, 4, 16, 48


def _by_name(*names: tuple[Any, str]) -> dict[str, Any]:
    return {name: value for value, line in names for name in line.split()}


SIZES: dict[str, int] = _by_name(
    (
        _HIDDEN,
        "hidden_size n_embd d_model emb_dim embedding_size embedding_dim word_embed_proj_dim lru_width "
        "attention_hidden_size input_embedding_size output_embedding_size hidden_size_global",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "swa_num_attention_heads num_query_groups linear_num_key_heads linear_num_value_heads linear_num_heads",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads laurel_rank "
        "num_experts_per_tok moe_topk num_experts_per_token moe_k top_k_experts",
    ),
    (
        _HEAD_DIM,
        "head_dim v_head_dim dim_head d_head swa_head_dim kv_channels qk_nope_head_dim kv_lora_rank "
        "index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim",
    ),
    (
        8,
        "qk_rope_head_dim rotary_dim hidden_size_per_layer_input mamba_d_state state_size ssm_state_size "
        "mamba_n_heads mamba_num_heads",
    ),
    (24, "q_lora_rank qk_head_dim"),
    (
        _INNER,
        "intermediate_size moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size expert_ffn_hidden_size n_inner dim_ff dff "
        "d_inner dense_intermediate_size intermediate_size_mlp feed_forward_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    ),
    (
        WINDOW,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
        "max_target_positions original_max_position_embeddings",
    ),
    (
        SLIDING,
        "sliding_window sliding_window_size attention_chunk_size local_attention window_size "
        "attention_window_size keep_window_size",
    ),
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size "
        "shape_vocab_size pronunciation_vocab_size encoder_hash_byte_group_vocab",
    ),
    # With few heads, an index whose scores are all cut off at 0 chooses among equals.
    (32, "index_n_heads"),
    (16, "index_topk"),
    (1, "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups"),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
)
"""Sizes by the attribute's name, put in where the default is larger."""

FACTORS: dict[str, float] = _by_name(
    (
        2.0,
        "logits_scaling lm_head_multiplier logit_scale logits_mup_width_multiplier final_logit_softcapping "
        "logits_soft_cap attn_logit_softcapping",
    ),
    (3.0, "embedding_multiplier scale_emb"),
    (0.7, "residual_multiplier key_multiplier attention_out_multiplier"),
    (0.2, "initializer_range init_std attention_multiplier"),
)
"""Factors whose default is often 1, or so large that leaving them out would not show."""

LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks"
).split()
"""Names of the number of layers."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": _INNER, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": _HIDDEN, "adapter_out_dim": _HIDDEN},
    "dots3_note_text": {
        "head_dim": 24,
        "swa_head_dim": 24,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "swa_num_attention_heads": _HEADS,
        "swa_num_key_value_heads": _HEADS,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": _HIDDEN, "adapter_out_dim": _HIDDEN},
    "gemma3n_text": {"intermediate_size": _INNER},
    "gemma4_text": {"global_head_dim": 2 * _HEAD_DIM},
    "gemma4_unified_text": {"global_head_dim": 2 * _HEAD_DIM},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "position_embedding_type": "rope"},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": _HEAD_DIM,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 100,
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "attention_hidden_size": 2 * _HIDDEN,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {"use_mem_rope": True},
}
"""Changes to the shrunk config by model_type; those to a part of a config stand under the part's own model_type."""

_DRAFTER = "drafts for another model and reads the keys and values of that one"
_ENCODER = "its config describes a text encoder, a decoder and a codec, and the class takes that of the decoder"
LEFT_OUT = {
    "gemma3n": "its image part needs the package timm; gemma3n_text is the language model",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _ENCODER,
    "musicgen_melody": _ENCODER,
}
"""Why a model_type of the list has no tiny model."""


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The shrunk default config of ``model_type``; ``changes`` go to its language model's config."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    parts = {
        name: _shrunk(part, changes if name == "text_config" else {})
        for name in getattr(kind, "sub_configs", {})
        if (part := getattr(default, name, None)) is not None
    } | EXCEPTIONS.get(model_type, {})
    if "text_config" in parts:
        return kind(**parts)
    return _shrunk(default, parts | changes)


def _shrunk(default: Any, changes: Mapping[str, Any]) -> Any:
    fields = type(default).__dataclass_fields__
    values = {name: value for name in fields if (value := _value(default, name)) is not None}
    shrunk: dict[str, Any] = {
        name: size
        for name, size in SIZES.items()
        if isinstance(value := values.get(name), int) and not isinstance(value, bool) and value > size
    }
    has_groups = values.get("num_key_value_heads") not in (None, values.get("num_attention_heads"))
    if "num_key_value_heads" in fields and (not has_groups or "qk_nope_head_dim" in values):
        shrunk["num_key_value_heads"] = _HEADS
    if "qk_rope_head_dim" in values and values.get("head_dim") == values["qk_rope_head_dim"]:
        shrunk["head_dim"] = SIZES["qk_rope_head_dim"]
    elif "head_dim" in fields and "head_dim" not in values:
        shrunk["head_dim"] = _HEAD_DIM
    if "is_decoder" in values:
        shrunk["is_decoder"] = True
    shrunk |= _layers(default, values) | _special_tokens(values)
    shrunk |= {name: factor for name, factor in FACTORS.items() if isinstance(values.get(name), float)}
    shrunk |= {name: 0.0 for name, value in values.items() if "drop" in name and isinstance(value, float)}
    if values.get("rope_parameters"):
        shrunk["rope_parameters"] = _shrunk_rope(values["rope_parameters"])
    return type(default)(**shrunk | EXCEPTIONS.get(default.model_type, {}) | dict(changes))


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name)
    except (AttributeError, RuntimeError):
        # Where a value differs from layer to layer, some configs raise when it is asked for.
        return vars(config).get(name)


def _layers(default: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Number of layers and what the config lists for each: the first layer of each kind, at least two layers."""
    count = next((number for name in LAYERS if isinstance(number := getattr(default, name, None), int)), None)
    if count is None:
        return {}
    lists = {
        name: list(value)
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == count and count > 2
    }
    kinds = [tuple(str(value[index]) for value in lists.values()) for index in range(count)]
    chosen = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    if len(chosen) < 2:
        chosen.append(1)
    shrunk: dict[str, Any] = {}
    if values.get("num_kv_shared_layers"):
        # As many layers again, which use the keys and values of the first.
        shrunk["num_kv_shared_layers"] = len(chosen)
        chosen *= 2
    shrunk |= {name: [value[index] for index in chosen] for name, value in lists.items()}
    return shrunk | {name: len(chosen) for name in LAYERS if isinstance(values.get(name), int)}


def _special_tokens(values: Mapping[str, Any]) -> dict[str, int]:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    named = [
        name for name, value in values.items() if name in ids or (name.endswith("_token_id") and value is not None)
    ]
    return {name: ids.get(name, 2) for name in named}


def _shrunk_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    shrunk = {name: _shrunk_rope(value) if isinstance(value, dict) else value for name, value in parameters.items()}
    if "original_max_position_embeddings" in shrunk:
        shrunk["original_max_position_embeddings"] = WINDOW
    return shrunk


def tiny_model(model_type: str, **changes: Any) -> Any:
    """A random model of `tiny_config`, in float32 and evaluation mode, the same on every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            # Sinks, gates and output matrices that begin at 0 would not show what is left out.
            if not weight.any():
                weight.normal_(0, 0.1)
    return model.eval()


def save(model: Any, model_type: str, folder: Path) -> None:
    """Save ``model`` as a checkpoint of ``model_type``, whose config may describe further parts."""
    model.save_pretrained(folder)
    config = tiny_config(model_type)
    if type(config) is not type(model.config):
        config.text_config = model.config
        config.save_pretrained(folder)
