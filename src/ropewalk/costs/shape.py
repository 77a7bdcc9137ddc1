"""The sizes of a model that costs depend on, from its transformers config; no weights are loaded."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ropewalk.models import published
from ropewalk.models.head import RECURRENT, layers_of
from ropewalk.models.reasons import reason
from ropewalk.rope import RotaryShape, rotary_shape
from ropewalk.rope.windows import is_windowed, layer_types, sliding_window


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    """Size of a head's queries and keys."""
    value_dim: int
    """Size of a head's values, which differs from ``head_dim`` only in multi-head latent attention."""
    vocab: int
    parameters: int
    layer_parameters: int
    """Number of parameters of the largest layer, which FSDP gathers as a whole."""
    outside_parameters: int
    """Number of parameters outside the layers: embeddings, last norm and output matrix."""
    matrices: int
    """Number of weights in the layers' linear maps that a token is multiplied with; of the experts, only those to which
    it is routed."""
    map_sizes: int
    """Sum of the numbers of inputs and outputs of the layers' linear maps: the parameters of adapters of rank 1."""
    full_layers: int
    """Number of layers that attend to all earlier tokens."""
    windowed_layers: int
    """Number of layers that attend to a sliding window; the rest are recurrent."""
    sliding_window: int
    """Reach of the windowed layers in tokens; 0 where there are none."""
    rotary: RotaryShape


def read_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The transformers config at ``path``, a folder or a hub id; raises ValueError where it cannot be read."""
    try:
        return published.read_config(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path {path}: its config.json cannot be read: {reason(error)}") from None


def with_layers(config: Any, layers: int, *, types: Sequence[str] | None = None) -> Any:
    """A copy of ``config`` whose model has only the first ``layers`` layers, or layers of ``types``."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        # Layers that read the whole input come first: where layer types have tables of their own, theirs is extended.
        config.layer_types = list(types or sorted(config.layer_types, key=is_windowed)[:layers])
    return config


def build(config: Any, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model of ``config`` with random weights, on the current device (meta, fake or real)."""
    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def not_told(config: Any, error: Exception) -> ValueError:
    """The error for a model whose work and memory cannot be told from a few of its layers."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(f"model.path: the work and memory of a {config.model_type} model cannot be told ({line})")


def shape_of(config: Any, *, name: str, original_length: int | None = None) -> ModelShape:
    """Sizes of the model of ``config``; raises ValueError where transformers has none or it cannot be extended."""
    try:
        return _shape_of(config, name, original_length)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise not_told(config, error) from None


def _shape_of(config: Any, name: str, original_length: int | None) -> ModelShape:
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            whole = build(config)
            model = whole if text is config else build(text)
    except ValueError as error:
        raise ValueError(f"model.path: {reason(error)}") from None
    # Tied weights count once.
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    layers = layers_of(model)
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    maps = [_sides(module) for layer in layers for module in layer.modules() if _is_map(module)]
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kind = "sliding_attention" if sliding_window(text) else "full_attention"
    types = layer_types(config) or [kind] * text.num_hidden_layers
    windowed = sum(map(is_windowed, types))
    rotary = rotary_shape(model)
    return ModelShape(
        name=name,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "qk_head_dim", None) or head_dim,
        value_dim=getattr(text, "v_head_dim", None) or head_dim,
        vocab=text.vocab_size,
        parameters=parameters,
        layer_parameters=max(sizes, default=0),
        outside_parameters=parameters - sum(sizes),
        matrices=sum(inputs * outputs for inputs, outputs in maps) + round(_experts(layers, text)),
        map_sizes=sum(inputs + outputs for inputs, outputs in maps),
        full_layers=sum(name not in RECURRENT and not is_windowed(name) for name in types),
        windowed_layers=windowed,
        sliding_window=(getattr(text, "sliding_window", None) or 0) if windowed else 0,
        rotary=RotaryShape(rotary.rotary_dim, rotary.base, original_length or rotary.original_length),
    )


def _is_map(module: nn.Module) -> bool:
    # GPT-2's class has linear maps of its own.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sides(module: nn.Module) -> tuple[int, int]:
    weight: Any = module.weight
    return weight.shape[0], weight.shape[1]


def _experts(layers: list[nn.Module], config: Any) -> float:
    """Number of weights of the experts to which a token is routed, which transformers keeps in 3D tensors."""
    per_token = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_topk", None) or 1
    blocks = (parameter for layer in layers for parameter in layer.parameters() if parameter.dim() == 3)
    return sum(block.numel() * per_token / block.shape[0] for block in blocks)
