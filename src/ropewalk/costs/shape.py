"""What costs depend on in a model, read from its transformers config; no weights are loaded."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.rope import RotaryShape, rotary_shape


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: int
    layer_parameters: int
    """Of one layer ..."""
    layer_matrices: int
    """... and those of its linear maps alone."""
    rotary: RotaryShape


def read_config(path: str) -> Any:
    """The transformers config at ``path``, a folder (weights need not be there) or a hub id.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model.path {path}: its config.json cannot be read: {line}") from None


def with_layers(config: Any, layers: int) -> Any:
    """A copy of ``config`` whose model has only the first ``layers`` layers."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def build(config: Any, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model of ``config`` with random weights, on the device that is in force (meta, fake or real)."""
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
    ).eval()


def shape_of(config: Any, *, name: str, original_length: int | None = None) -> ModelShape:
    """Sizes of the model of ``config``.

    Raises:
        ValueError: transformers has no causal model for it, or its rotary table is not one that can be extended.
    """
    one, two = build_empty(with_layers(config, 1)), build_empty(with_layers(config, 2))
    matrices = [sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) for model in (one, two)]
    # Tied weights count once.
    parameters = [sum(p.numel() for p in model.parameters()) for model in (one, two)]
    layer = parameters[1] - parameters[0]
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = rotary_shape(one)
    return ModelShape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config.vocab_size,
        parameters=parameters[0] + (config.num_hidden_layers - 1) * layer,
        layer_parameters=layer,
        layer_matrices=matrices[1] - matrices[0],
        rotary=RotaryShape(rotary.rotary_dim, rotary.base, original_length or rotary.original_length),
    )


def build_empty(config: Any) -> Any:
    """The model of ``config`` without storage for its weights."""
    try:
        with torch.device("meta"):
            return build(config)
    except ValueError as error:
        raise ValueError(f"model.path: {str(error).splitlines()[0]}") from None
