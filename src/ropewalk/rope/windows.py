"""The windows of a model, as its transformers config states them."""

from typing import Any


def rope_parameters(config: Any, layer_type: str | None) -> Any:
    """The config's ``rope_parameters``: those of the layer type where each type has its own."""
    return config.rope_parameters[layer_type] if layer_type else config.rope_parameters


def rope_sections(config: Any) -> list[dict[str, Any]]:
    """The config's ``rope_parameters`` for all layers, or those for each layer type."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [section for section in parameters.values() if isinstance(section, dict)] or [parameters]


def windows(config: Any, layer_type: str | None) -> tuple[int, int]:
    """Windows in tokens before and after the scaling that the config states.

    max_position_embeddings is the window after linear scaling, as LLaMA-2-7B-32K and Gemma-3 state it, and the one
    before dynamic NTK, which transformers computes from there.

    Raises:
        ValueError: the config states no window.
    """
    parameters = rope_parameters(config, layer_type)
    kind, factor = parameters.get("rope_type", "default"), float(parameters.get("factor") or 1.0)
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        raise ValueError(
            f"the {type(config).__name__} states no max_position_embeddings, so the window is unknown; add it to "
            "config.json"
        )
    stated = max(int(stated), read_window(config) or 0)
    stated = min(stated, trained_distance(config) or stated)
    if kind == "linear":
        # Vicuna states both windows.
        stated = int(getattr(config, "max_sequence_length", None) or stated)
        return round(stated / factor), stated
    original = int(parameters.get("original_max_position_embeddings") or stated)
    if kind == "dynamic":
        return stated, stated if parameters.get("alpha") else round(stated * factor)
    if kind == "yarn" or (kind == "longrope" and parameters.get("factor")):
        return original, max(original, round(original * factor))
    if kind == "llama3":
        # Its factor is that of the periods: the window is 16 times the original one under a factor of 8 in Llama 3.1
        # and of 32 in Llama 3.2.
        return original, stated if stated > original else round(original * factor)
    return original, max(original, stated)


def read_window(config: Any) -> int | None:
    """The window that Cohere's checkpoints state beside max_position_embeddings, which is reduced to save memory."""
    return getattr(config, "model_max_length", None) if config.model_type == "cohere" else None


def trained_distance(config: Any) -> int | None:
    """The longest distance between tokens in training, where the config shows that it is below the window.

    That is the sliding window where all layers have one, or the largest distance of dual chunk attention (Qwen2.5-1M),
    which transformers does not have.
    """
    chunks = getattr(config, "dual_chunk_attention_config", None) or {}
    return sliding_window(config) or chunks.get("original_max_position_embeddings")


NO_WINDOW = 2**31 - 1
"""Stands for no sliding window in configs of classes that take a number only."""


def sliding_window(config: Any) -> int | None:
    """The sliding window in tokens, where every layer of the model has it; None otherwise."""
    window = getattr(config, "sliding_window", None)
    return int(window) if window and window < NO_WINDOW and all(map(is_windowed, layer_types(config))) else None


def layer_types(config: Any) -> list[str]:
    """transformers' name of every layer's type (full_attention, linear_attention …); empty where layers have none."""
    return list(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())


def is_windowed(layer_type: str) -> bool:
    """Whether transformers' layers of the type read no further than a window.

    DeepSeek-V4, which has a rotary table per kind of layer, calls that of its layers with a sliding window "main".
    """
    return any(word in layer_type for word in ("sliding", "chunked")) or layer_type == "main"
