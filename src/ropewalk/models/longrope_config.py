"""The config under which plain transformers applies our scalings: rope_type "longrope" in place of what the model has.

Not only the rotary module reads ``rope_parameters``. Attention takes ``mscale_all_dim`` (DeepSeek and its like) or
``llama_4_scaling_beta`` (Ministral) from there, multimodal positions ``mrope_section``, and layers that rotate part of
a head ``partial_rotary_factor``; so all keys stay except those of the kind of scaling that is replaced.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.models.reasons import reason
from ropewalk.rope import RopeScaling, rotary_of_config
from ropewalk.rope.windows import rope_parameters

_SCALING_KEYS = frozenset(
    "rope_type type factor attention_factor beta_fast beta_slow truncate mscale mscale_all_dim low_freq_factor "
    "high_freq_factor short_factor long_factor short_mscale long_mscale alpha original_max_position_embeddings".split()
)
"""Keys of single rope types in transformers' ``modeling_rope_utils``, current and former ones."""
AT_REST = 1e30
"""Factor of a pair that does not turn at all (its frequency is 0, as in Gemma-4's proportional RoPE)."""


def longrope_config(model: Any, *, short: RopeScaling, long: RopeScaling, short_attention_factor: float) -> Any:
    """A copy of the model's config that has ``short`` up to the original window and ``long`` beyond it.

    Args:
        model: a transformers causal language model, whose weights are not read.
        short_attention_factor: what software that keeps two attention factors applies up to the original window.

    Raises:
        ValueError: the config cannot express the two scalings, or the class does not apply them.
    """
    kind = type(model.config)
    if kind.__module__.startswith("transformers.") and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"AutoModelForCausalLM does not load what has a {kind.__name__}")
    config, rotary = copy.deepcopy(model.config), rotary_of_config(model)
    text, layer_type = config.get_text_config(), rotary.layer_type
    old = rope_parameters(text, layer_type)
    section = {key: value for key, value in old.items() if key not in _SCALING_KEYS}
    if old.get("rope_type") == "proportional":
        # This type sets the frequencies of the other pairs to 0, whereas longrope would leave these pairs out.
        section["partial_rotary_factor"] = 1.0
    section |= {
        "rope_type": "longrope",
        "factor": long.ratio,
        "attention_factor": long.attention_factor,
        # vLLM and SGLang read these two instead of attention_factor.
        "short_mscale": short_attention_factor,
        "long_mscale": long.attention_factor,
        "original_max_position_embeddings": _original_length(old, short, long),
        **_softmax_scale(old, long.ratio),
    }
    if hasattr(text, "original_max_position_embeddings"):  # Phi: it takes precedence over rope_parameters
        text.original_max_position_embeddings = section["original_max_position_embeddings"]
    text.max_position_embeddings = long.target_length
    if text.is_heterogeneous:
        # Gemma-4 has heads of two sizes. Without this key, transformers refuses to read the size with which it checks
        # the number of factors.
        text.allow_global_per_layer_attribute_access = True
    text.rope_parameters = {**text.rope_parameters, layer_type: section} if layer_type else section
    if getattr(text, "head_dim", 0) is None:  # Mixtral: transformers' longrope takes it as it stands
        text.head_dim = text.hidden_size // text.num_attention_heads
    try:
        section |= {"short_factor": [1.0], "long_factor": [1.0]}
        longrope_freq = ROPE_INIT_FUNCTIONS["longrope"](text, **rotary.options)[0]
        # transformers chooses between the two at every step, and all models but Phi continue from a cache of the other
        # set when generation crosses the original window, so only equal sets are safe.
        plain = rotary.inv_freq
        section |= {
            "short_factor": _factors(short, plain, longrope_freq),
            "long_factor": _factors(long, plain, longrope_freq),
        }
        rebuilt: Any = type(rotary.rotary)(text)
        for scaling, length in ((short, long.original_length), (long, 2 * long.original_length)):
            rotary.set_scaling(scaling)
            if not rotary.agrees_with(rebuilt, length=length):
                raise ValueError(f"its rotary module does not apply these factors at {length} tokens")
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"its rotary module does not take rope_type longrope ({reason(error)})") from None
    return config


def _factors(scaling: RopeScaling, plain: Tensor, longrope_freq: Tensor) -> list[float]:
    """Factors that divide longrope's frequencies to give those that ``scaling`` gives by dividing ``plain``."""
    if len(longrope_freq) != len(plain):
        raise ValueError(
            f"longrope makes {len(longrope_freq)} rotary pairs of its config where the model has {len(plain)}"
        )
    if torch.allclose(plain, longrope_freq, rtol=1e-5, atol=0):
        return list(scaling.factors)
    ratios = (longrope_freq.double() / plain.double()).tolist()
    return [AT_REST if math.isinf(r) else r * factor for r, factor in zip(ratios, scaling.factors, strict=True)]


def _original_length(old: dict[str, Any], short: RopeScaling, long: RopeScaling) -> int:
    """The original window in tokens, or the step of ``llama_4_scaling_beta`` where the model has one."""
    stated = old.get("original_max_position_embeddings")
    if not old.get("llama_4_scaling_beta") or stated in (None, long.original_length):
        return long.original_length
    if short != long:
        raise ValueError(
            f"its attention counts in steps of {stated} tokens, so its two sets of factors cannot change at "
            f"{long.original_length}; give export.short_factor=same"
        )
    return int(stated)


def _softmax_scale(old: dict[str, Any], ratio: float) -> dict[str, float]:
    """An ``mscale_all_dim`` that multiplies the softmax scale by what the model's own does.

    The multiplier is the square of 0.1 mscale_all_dim ln(factor) + 1 (``yarn_apply_mscale`` of DeepSeek's modules),
    where any kind of scaling is set.

    Raises:
        ValueError: the multiplier is not 1, and the ratio of windows is.
    """
    weight = old.get("mscale_all_dim") or 0.0
    if old.get("rope_type", "default") == "default" or not weight or old["factor"] <= 1:
        return {}
    if ratio <= 1:
        raise ValueError("its softmax scale is multiplied as for a longer window, but the window is the original one")
    return {"mscale_all_dim": weight * math.log(old["factor"]) / math.log(ratio)}
