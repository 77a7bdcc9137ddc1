"""Refuses values in config.json that no model can have, naming the key, before transformers computes with them."""

import math
from collections.abc import Mapping
from typing import Any

_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_ROPE = {
    "rope_theta": ("above 0", 0.0, math.inf),
    "factor": ("from 1", math.nextafter(1.0, 0.0), math.inf),
    "original_max_position_embeddings": ("above 0", 0.0, math.inf),
    "partial_rotary_factor": ("above 0 and up to 1", 0.0, 1.0),
    "short_factor": ("above 0", 0.0, math.inf),
    "long_factor": ("above 0", 0.0, math.inf),
}
"""Bounds of the numbers of a rotary embedding: in words, the exclusive lower and the inclusive upper bound."""


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, where ``values``, a config.json or its text_config, fit no model."""
    if not isinstance(model_type := values.get("model_type") or "", str):
        raise ValueError(f"model_type must be a name, found {model_type!r}")
    for key in _COUNTS:
        if isinstance(count := values.get(key), int) and count < 1:
            raise ValueError(f"{key} must be above 0, found {count}")
    if values.get("max_position_embeddings", 1) is None:
        raise ValueError("max_position_embeddings is null, so the window is unknown; state it in config.json")
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ValueError(f"num_attention_heads must be a multiple of num_key_value_heads, found {heads} and {groups}")
    _check_rope(values)
    for key in ("rope_scaling", "rope_parameters"):
        section = values.get(key) or {}
        if not isinstance(section, dict):
            raise ValueError(f"{key} must hold the keys of a scaling, or null for none, found {section!r}")
        if section.get("factor") is not None and not {"type", "rope_type"} & section.keys():
            raise ValueError(
                f"{key} has a factor and no rope_type, which transformers reads as plain RoPE; state the type, as "
                '"rope_type": "linear"'
            )
        for part in (section, *section.values()):
            if isinstance(part, dict):
                _check_rope(part)
    if isinstance(text := values.get("text_config"), dict):
        check_values(text)


def _check_rope(section: Mapping[str, Any]) -> None:
    for key, (bounds, low, high) in _ROPE.items():
        value = section.get(key)
        if value is None and not (key == "rope_theta" and key in section):
            continue
        for number in value if isinstance(value, list) else [value]:
            if not (isinstance(number, int | float) and math.isfinite(number) and low < number <= high):
                raise ValueError(f"{key} must be a number {bounds}, found {number!r}")
