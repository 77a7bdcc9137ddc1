"""The scaling in a published checkpoint's config.json, or in a published table of factors.

config.json is read by the config class of transformers, which knows the defaults of its architecture, and the scaling
is what the rotary module of that config computes. Spellings that transformers refuses today are brought up to date.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ropewalk.files import read_json
from ropewalk.models.config_values import check_values
from ropewalk.models.reasons import reason
from ropewalk.models.source import Source
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, model_scaling, rotary_shape
from ropewalk.rope.windows import NO_WINDOW, read_window, rope_sections, sliding_window, trained_distance

_AMBIGUOUS = {"pi": "after linear", "dynamic_ntk": "before dynamic"}
"""How max_position_embeddings is read for methods whose checkpoints state the window before or after scaling."""


_REMEDY = "save its language model as a checkpoint of its own, with the text_config as config.json, and extend that"
"""Advice for a language model that is a part of a multimodal model."""


@dataclass(frozen=True)
class PublishedScaling:
    """A checkpoint's rotary embedding: a single scaling, or longrope's two, up to the original window and beyond it."""

    shape: RotaryShape
    switch: LengthSwitch
    start: LengthSwitch | None = None
    """The switch that a further extension starts from, or None where that is plain RoPE.

    Dynamic NTK also gives None: it is applied after training, so the weights were trained under plain RoPE.
    """
    reading: str | None = None
    """How an ambiguous window was read, and what to give where it is meant in the other way; one line."""

    @property
    def scaling(self) -> RopeScaling:
        """The scaling for the longest inputs; `RopeScaling.then` extends it further."""
        return self.switch.longest


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The transformers config of a checkpoint's folder, its config.json, a GGUF file, or a hub id.

    Raises:
        FileNotFoundError: there is no config.json.
        OSError: it cannot be read.
        ValueError: transformers does not know the model, or its config class rejects a value.
    """
    source = Source.at(path)
    if source.gguf_file:
        return AutoConfig.from_pretrained(source.path, **source.keywords)
    file = source.config_file
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"it must hold the configuration of a model, found {type(values).__name__}")
    check_values(values)
    modern = _modern(values)
    try:
        if modern != values and values.get("model_type") in CONFIG_MAPPING:
            config = CONFIG_MAPPING[values["model_type"]].from_dict(modern)
        else:
            config = AutoConfig.from_pretrained(
                source.path if trust_remote_code else file.parent,
                trust_remote_code=trust_remote_code,
                **source.keywords,
            )
        sections = rope_sections(config)
    except Exception as error:  # Config classes check their values with errors of many types.
        raise ValueError(reason(error)) from None
    known = ("default", *ROPE_INIT_FUNCTIONS)
    for section in sections:
        if not trust_remote_code and (kind := section.get("rope_type", "default")) not in known:
            raise ValueError(f"unknown kind of scaling {kind!r}; transformers knows {', '.join(known)}")
    return config


def _modern(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with longrope's first name, "su", and its window outside the section in today's spelling."""
    modern = dict(values)
    if isinstance(text := values.get("text_config"), dict):
        modern["text_config"] = _modern(text)
    section = values.get("rope_scaling")
    if isinstance(section, dict) and "su" in (section.get("type"), section.get("rope_type")):
        original = values.get("original_max_position_embeddings")
        window = {"original_max_position_embeddings": original} if original else {}
        modern["rope_scaling"] = {**window, **section, "type": "longrope", "rope_type": "longrope"}
    return modern


def turn_off_sliding_window(config: Any) -> int | None:
    """Let every layer attend to all tokens where all have a sliding window; return the window in tokens.

    Where only some have one, as in Gemma-3 or gpt-oss, the others read the whole input, and nothing is changed.
    """
    config = config.get_text_config()
    sliding = sliding_window(config)
    if sliding is None:
        return None
    if getattr(config, "layer_types", None):
        # Ministral builds the mask of a sliding window even if no layer uses it.
        config.sliding_window = NO_WINDOW
        config.layer_types = ["full_attention"] * len(config.layer_types)
    else:
        try:
            config.sliding_window = None
        except StrictDataclassFieldValidationError:
            config.sliding_window = NO_WINDOW
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False
    return sliding


def check_saved_alone(model: Any, config: Any) -> None:
    """Raise ValueError where ``model`` is a part of the model of ``config`` and cannot be loaded when saved alone."""
    kind = model.config.model_type
    if kind != config.model_type and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"transformers does not load {type(model).__name__} apart from the rest of {config.model_type}, so it "
            f"cannot be saved after training or for export; {_REMEDY}"
        )


def empty_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The causal language model of ``config`` without storage for its weights.

    Raises:
        ValueError: transformers has no causal language model for it, or cannot build it or save it alone.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).eval()
    except Exception as error:  # Sizes that contradict one another fail anywhere in the class.
        if "Unrecognized configuration class" in str(error):
            remedy = f"; {_REMEDY}" if config.get_text_config() is not config else ""
            raise ValueError(
                f"transformers has no causal language model of the type {config.model_type}{remedy}"
            ) from None
        raise ValueError(f"transformers cannot build this model: {reason(error)}") from None
    check_saved_alone(model, config)
    return model


def published_scaling(
    path: str | Path, *, original_length: int | None = None, trust_remote_code: bool = False
) -> PublishedScaling:
    """Read the scaling of ``model.path``: a checkpoint's folder, its config.json, a GGUF file, or a hub id.

    Args:
        original_length: window in tokens before any scaling, where it is not what config.json states.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it cannot be read, its model has no rotary embedding that can be extended, or it states no window.
    """
    try:
        config = read_config(path, trust_remote_code=trust_remote_code)
        published = scaling_of_model(
            empty_model(config, trust_remote_code=trust_remote_code), original_length=original_length
        )
        if original_length or published.reading:
            return published
        return replace(published, reading=_reading_by_default(Source.at(path), config))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"model.path {path}: its config.json cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise ValueError(f"model.path {path}: {error}") from None


def scaling_of_model(model: Any, *, original_length: int | None = None) -> PublishedScaling:
    """The scaling that the class of ``model`` applies by its config; arguments and errors as `published_scaling`."""
    shape, short = rotary_shape(model), model_scaling(model)
    long = model_scaling(model, length=short.target_length)
    original, target = short.original_length, short.target_length
    if long.method in _AMBIGUOUS:
        target = round((original_length or original) * _ratio(long))
    original = original_length or original
    target = max(original, target)
    short, long = (replace(scaling, original_length=original, target_length=target) for scaling in (short, long))
    switch = LengthSwitch(((target, long),))
    start = switch
    if (short.factors, short.attention_factor) != (long.factors, long.attention_factor):
        within_window = (original, replace(short, target_length=original))
        if long.method == "longrope":
            switch = start = LengthSwitch((within_window, (target, long))) if target > original else switch
        else:
            # A scaling that grows with the input is applied after training.
            start = LengthSwitch((within_window,))
    further_start = None if start.longest.is_plain else start
    shape = replace(shape, original_length=original)
    return PublishedScaling(shape, switch, further_start, None if original_length else _reading(model, long))


def _reading_by_default(source: Source, config: Any) -> str | None:
    """How the window was read where config.json leaves it to the default of its class, None where it states one."""
    if source.gguf_file:
        return None
    values, text = read_json(source.config_file), config.get_text_config()
    section = values.get("text_config")
    section = section if isinstance(section, dict) else values
    names = {"max_position_embeddings", text.attribute_map.get("max_position_embeddings")}
    if names & section.keys():
        return None
    return (
        f"config.json states no max_position_embeddings, so the default of {type(text).__name__}, "
        f"{text.max_position_embeddings} tokens, is taken; where the window is another, give model.original_length"
    )


def _ratio(scaling: RopeScaling) -> float:
    return scaling.factors[0] if scaling.method == "pi" else scaling.ratio


def _reading(model: Any, scaling: RopeScaling) -> str | None:
    """How max_position_embeddings was read where it has two readings, and which setting asks for the other reading."""
    config, ratio = model.config.get_text_config(), _ratio(scaling)
    stated, original, target = config.max_position_embeddings, scaling.original_length, scaling.target_length
    if scaling.method in _AMBIGUOUS and ratio > 1:
        if target == getattr(config, "max_sequence_length", None):
            return None
        other = target if scaling.method == "pi" else round(original / ratio)
        read = f"the window {_AMBIGUOUS[scaling.method]} scaling by {ratio:g}, which leads from {original} to {target}"
    elif (distance := trained_distance(config)) and distance < stated:
        other, read = stated, f"longer than the model was trained for, whose attention kept within {distance} tokens"
    elif original > stated and original == read_window(config):
        other, read = stated, f"shorter than the model's window, which is model_max_length {original}"
    else:
        return None
    return (
        f"max_position_embeddings {stated} is read as {read}; where it is meant otherwise, give "
        f"model.original_length={other}"
    )


def published_table(path: str | Path, *, base: float, original_length: int, target_length: int) -> PublishedScaling:
    """Read a CSV table of factors, one row or one row per layer; raises ValueError as `RopeScaling.from_csv`."""
    scaling = RopeScaling.from_csv(path, original_length=original_length, target_length=target_length)
    shape = RotaryShape(scaling.rotary_dim, base, original_length)
    return PublishedScaling(shape, LengthSwitch(((target_length, scaling),)))
