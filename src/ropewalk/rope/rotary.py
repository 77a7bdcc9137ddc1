"""The rotary module of a transformers model: where it is, what it computes, and how it is made to apply a scaling."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ropewalk.rope.embedding import RotaryEmbedding
from ropewalk.rope.query_scales import applied_scales, put_scales, query_scales
from ropewalk.rope.scaling import RopeScaling
from ropewalk.rope.windows import is_windowed, rope_parameters, windows

Model = TypeVar("Model", bound=nn.Module)

_METHODS = {"default": "none", "proportional": "none", "linear": "pi", "dynamic": "dynamic_ntk"}
"""Our names of transformers' rope_types, where they differ."""


@dataclass(frozen=True)
class RotaryShape:
    """The sizes of a model's rotary embedding, which every method needs."""

    rotary_dim: int
    base: float
    """The config's rope_theta: pair i turns by base^(-2i / rotary_dim) radians a token."""
    original_length: int
    """Window before any scaling, in tokens."""


def _rotary_modules(model: Any) -> dict[str, nn.Module]:
    """The rotary modules of the model's decoder by all their names; for a wrapped module, its wrapper."""
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False))
    }
    wrapped = {module.rotary for module in modules.values() if isinstance(module, RotaryEmbedding)}
    modules = {name: module for name, module in modules.items() if module not in wrapped}
    # The encoders of a multimodal model rotate too. ModernBERT calls its output matrix the decoder.
    decoder = set(model.get_decoder().modules()) if hasattr(model, "get_decoder") else set()
    return {name: module for name, module in modules.items() if module in decoder} or modules


def _are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two rotary modules compute the same."""
    if first is second:
        return True
    if type(first) is not type(second) or isinstance(first, RotaryEmbedding):
        return False
    parameters = [getattr(getattr(module, "config", None), "rope_parameters", None) for module in (first, second)]
    tables = [dict(module.named_buffers(recurse=False)) for module in (first, second)]
    return (
        parameters[0] == parameters[1]
        and tables[0].keys() == tables[1].keys()
        and all(
            table.shape == tables[1][name].shape and (table.is_meta or torch.equal(table, tables[1][name]))
            for name, table in tables[0].items()
        )
    )


def find_rotary(model: nn.Module) -> tuple[str, nn.Module]:
    """The name of the module that computes the model's rotary embedding, and the module.

    Where every layer has a module and all of these are equal, it is the first layer's.

    Raises:
        ValueError: the model has no module that computes from frequencies, or several that differ.
    """
    modules = _rotary_modules(model)
    kind = type(model).__name__
    config = getattr(model, "config", None)
    if not modules or getattr(config, "alibi", False):
        raise ValueError(f"{kind} {_without_rotary(config)}; only RoPE models can be extended")
    name, rotary = next(iter(modules.items()))
    if not all(_are_equal(rotary, other) for other in modules.values()):
        names = list(dict(zip(modules.values(), modules, strict=True)).values())
        raise ValueError(f"{kind} has {len(names)} different rotary tables ({', '.join(names)}); one can be extended")
    return name, rotary


def _without_rotary(config: Any) -> str:
    """Why a model has no rotary frequencies that it uses, in words for the message."""
    if getattr(config, "alibi", False):
        return "has ALiBi in place of rotary position embeddings"
    # GPT-J and CodeGen have the first of these keys, RoFormer the second.
    if getattr(config, "rotary_dim", None) or getattr(config, "rotary_value", None) is not None:
        return "rotates by a fixed table of sines, which has no frequencies that could be rescaled"
    return "has no rotary position embedding"


def _layer_type(rotary: nn.Module, kind: str) -> str | None:
    """Type of the layers whose table is to be extended; None where the module has a single table.

    Raises:
        ValueError: only layers with a sliding window have a table, or the module does not compute it from a config.
    """
    if not (hasattr(rotary, "compute_default_rope_parameters") and hasattr(rotary, "config")):
        raise ValueError(f"{kind} does not say how its plain rotary frequencies are computed")
    tables = [name for name, _ in rotary.named_buffers(recurse=False) if name.endswith("inv_freq")]
    if "inv_freq" in tables:
        return None
    types = [name.removesuffix("_inv_freq") for name in tables if not name.endswith("original_inv_freq")]
    for layer_type in types:
        if not is_windowed(layer_type):
            return layer_type
    raise ValueError(
        f"{kind} has rotary embeddings only in its layers of type {', '.join(types)}, which do not read beyond their "
        "window, so there is nothing to extend"
    )


def _plain_inverse_frequencies(rotary: Any, layer_type: str | None) -> Tensor:
    """Frequencies without any scaling in float32, recomputed since the table may be scaled, or in bfloat16."""
    config = rotary.config
    parameters = rope_parameters(config, layer_type)
    if parameters.get("rope_type") == "proportional":
        # Gemma-4 leaves part of the pairs at rest, which is no scaling.
        return _frequencies(_rebuilt(rotary), layer_type) * float(parameters.get("factor") or 1.0)
    options = {"layer_type": layer_type} if layer_type else {}
    if layer_type and config.is_heterogeneous:
        # The size of a head differs by layer type, as in Gemma-4.
        config = config.per_layer_config[layer_type]
    plain: Tensor = rotary.compute_default_rope_parameters(config, **options)[0]
    return plain.float()


def _frequencies(rotary: nn.Module, layer_type: str | None) -> Tensor:
    """The frequencies that the module holds, in float32."""
    frequencies: Tensor = getattr(rotary, f"{layer_type}_inv_freq" if layer_type else "inv_freq")
    return frequencies.float()


def _rebuilt(rotary: nn.Module) -> Any:
    """The module made anew from its config on the CPU, since its tables may be in bfloat16 or without values."""
    with torch.device("cpu"):
        return type(rotary)(rotary.config)


def _wrapped_rotary(model: nn.Module) -> tuple[Any, str | None]:
    """The model's rotary module, out of its wrapper, and the layer type whose table is to be extended."""
    _, rotary = find_rotary(model)
    if isinstance(rotary, RotaryEmbedding):
        return rotary.rotary, rotary.layer_type
    return rotary, _layer_type(rotary, type(model).__name__)


def rotary_shape(model: Any) -> RotaryShape:
    """Rotary dimension, base and original window of a transformers model, from its rotary module and config.

    Raises:
        ValueError: as `find_rotary`, or only layers with a sliding window rotate.
    """
    scaled = find_rotary(model)[1]
    rotary, layer_type = _wrapped_rotary(model)
    if isinstance(scaled, RotaryEmbedding):
        inv_freq, original = scaled.inv_freq, scaled.scaling.original_length
    else:
        inv_freq = _plain_inverse_frequencies(rotary, layer_type)
        original, _ = windows(rotary.config, layer_type)
    return RotaryShape(2 * len(inv_freq), float(rope_parameters(rotary.config, layer_type)["rope_theta"]), original)


def extend(model: Model, scaling: RopeScaling) -> Model:
    """Make a transformers model apply ``scaling`` in place of any scaling it has, and return the model.

    Raises:
        ValueError: as `rotary_shape`, the model has another rotary dimension than the factors, or as
            `ropewalk.rope.query_scales.QueryScales.set`.
    """
    _, rotary = find_rotary(model)
    if isinstance(rotary, RotaryEmbedding):
        rotary.set_scaling(scaling)
    else:
        replace_rotary(model, _wrapper(model, scaling))
    put_scales(model, scaling)
    return model


@contextmanager
def extended(model: nn.Module, scaling: RopeScaling) -> Iterator[None]:
    """Let the model apply ``scaling`` within the block, and give it its rotary module back; raises as `extend`."""
    original_modules, scales = _rotary_modules(model), applied_scales(model)
    replace_rotary(model, _wrapper(model, scaling))
    try:
        put_scales(model, scaling)
        yield
    finally:
        for name, module in original_modules.items():
            _put(model, name, module)
        if applied_scales(model) is not scales:
            query_scales(model).set(scales)


def _wrapper(model: nn.Module, scaling: RopeScaling) -> RotaryEmbedding:
    """A new wrapper of the model's rotary module, which is not put into the model."""
    scaled = find_rotary(model)[1]
    rotary, layer_type = _wrapped_rotary(model)
    if isinstance(scaled, RotaryEmbedding):
        inv_freq = scaled.inv_freq
    else:
        inv_freq = _plain_inverse_frequencies(rotary, layer_type).to(next(rotary.buffers()).device)
    return RotaryEmbedding(rotary, inv_freq, scaling, layer_type=layer_type)


def replace_rotary(model: nn.Module, replacement: RotaryEmbedding) -> None:
    """Put ``replacement`` wherever the model has a rotary module, be it for all layers or in each of them."""
    for name in _rotary_modules(model):
        _put(model, name, replacement)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def rotary_of_config(model: nn.Module) -> RotaryEmbedding:
    """The module that `extend` would put into the model, made from its config alone, on the CPU and unscaled.

    Raises:
        ValueError: as `extend`.
    """
    rotary, layer_type = _wrapped_rotary(model)
    plain = _plain_inverse_frequencies(rotary, layer_type)
    unscaled = RopeScaling((1.0,) * len(plain), 1, 1, method="none")
    return RotaryEmbedding(_rebuilt(rotary), plain, unscaled, layer_type=layer_type)


def current_scaling(model: nn.Module) -> RopeScaling | None:
    """The scaling that `extend` made the model apply, or None."""
    _, rotary = find_rotary(model)
    return rotary.scaling if isinstance(rotary, RotaryEmbedding) else None


def model_scaling(model: nn.Module, *, length: int = 1) -> RopeScaling:
    """The scaling that the model's class applies by its config to inputs of ``length`` tokens, also under `extend`.

    Raises:
        ValueError: as `rotary_shape`, or the config's number of factors is not the model's number of pairs, or the
            class computes something else.
    """
    ours = rotary_of_config(model)
    theirs, plain = ours.rotary, ours.inv_freq
    parameters = rope_parameters(theirs.config, ours.layer_type)
    for key in ("short_factor", "long_factor"):
        if len(parameters.get(key) or plain) != len(plain):
            raise ValueError(f"{key} has {len(parameters[key])} rescale factors, but the model has {len(plain)} pairs")
    table = theirs(torch.zeros(1), torch.tensor([[0, length - 1]]), **ours.options)
    scaled = _frequencies(theirs, ours.layer_type)
    factors = torch.where(scaled == plain, 1.0, plain.double() / scaled.double())
    # The cosine of position 0 is 1, so the table holds the attention factor there.
    cos = table.real if isinstance(table, Tensor) else table[0]
    original, target = windows(theirs.config, ours.layer_type)
    kind = "ntk" if parameters.get("alpha") else parameters.get("rope_type", "default")
    scaling = RopeScaling(
        tuple(map(_decimal, factors.tolist())),
        original,
        target,
        attention_factor=_decimal(float(cos[..., 0, 0].flatten()[0])),
        method=_METHODS.get(kind, kind),
    )
    ours.set_scaling(scaling)
    if not ours.agrees_with(theirs, length=length):
        raise ValueError(
            f"{type(model).__name__} does not apply the scaling of its config to inputs of {length} tokens"
        )
    return scaling


def _decimal(value: float) -> float:
    """The decimal number of six digits that float32 rounds to ``value``, or ``value`` where there is no such number."""
    short = float(f"{value:.6g}")
    return short if abs(short - value) <= 4 * torch.finfo(torch.float32).eps * value else value
