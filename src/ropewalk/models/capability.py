"""What can be done with a checkpoint's model, determined from its config.json alone, before any work."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ropewalk.models.llama_cpp import architecture_of
from ropewalk.models.longrope_config import longrope_config
from ropewalk.models.published import empty_model, read_config, scaling_of_model, turn_off_sliding_window
from ropewalk.rope import RopeScaling, RotaryShape, find_rotary
from ropewalk.rope.windows import is_windowed, layer_types

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capability:
    """Reasons why the model cannot be extended, trained, exported or written as GGUF; None for what can be done."""

    extended: str | None
    trained: str | None
    exported: str | None
    written_as_gguf: str | None

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        """Pairs of an operation, in words, and the reason why it cannot be done."""
        for item in fields(self):
            yield item.name.replace("_", " ").replace("gguf", "GGUF"), getattr(self, item.name)

    def __str__(self) -> str:
        return "\n".join(f"can be {operation}: {f'no, {reason}' if reason else 'yes'}" for operation, reason in self)


def capability(path: str, *, trust_remote_code: bool = False, keep_sliding_window: bool = False) -> Capability:
    """What can be done with the model at ``path``, a folder, its config.json, a GGUF file or a hub id.

    Args:
        trust_remote_code, keep_sliding_window: as in `ropewalk.models.base.load_model`.

    Raises:
        FileNotFoundError: there is no config.json.
        OSError: it cannot be read.
    """
    try:
        config = read_config(path, trust_remote_code=trust_remote_code)
        model = empty_model(config, trust_remote_code=trust_remote_code)
        shape = scaling_of_model(model).shape
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
        has_windows = any(map(is_windowed, layer_types(config)))
        if not keep_sliding_window and turn_off_sliding_window(config):
            model = empty_model(config, trust_remote_code=trust_remote_code)
        if has_windows:
            _check_reach(model, window)
    except ValueError as error:
        return Capability(*[str(error)] * 4)
    quantised = _quantisation_obstacle(config)
    exported = quantised or _export_obstacle(model, shape)
    return Capability(None, quantised, exported, exported or _gguf_obstacle(config))


def _quantisation_obstacle(config: Any) -> str | None:
    section = getattr(config, "quantization_config", None)
    if not section:
        return None
    method = section.get("quant_method") if isinstance(section, dict) else getattr(section, "quant_method", None)
    method = method or "by a method without a name"
    return f"its weights are quantised ({method}); give a checkpoint of the weights that they were made from"


def _export_obstacle(model: Any, shape: RotaryShape) -> str | None:
    """Why plain transformers cannot apply rescale factors to the model, None where it can."""
    pairs = shape.rotary_dim // 2
    factors = tuple(1 + pair / pairs for pair in range(pairs))
    scaling = RopeScaling(factors, shape.original_length, 2 * shape.original_length)
    try:
        longrope_config(model, short=scaling, long=scaling, short_attention_factor=1.0)
    except ValueError as error:
        return str(error)
    return None


def _gguf_obstacle(config: Any) -> str | None:
    """Why llama.cpp does not compute the extended model, None where it does."""
    try:
        architecture = architecture_of(config.to_dict())
    except ValueError as error:
        return str(error)
    if architecture.applies_factors:
        return None
    return f"llama.cpp applies no rescale factors in models of the type {architecture.name}"


def _check_reach(model: Any, window: int | None) -> None:
    """Raise ValueError where only layers with a sliding window (of ``window`` tokens) apply the rotary embedding."""
    class_name, rotating = type(model).__name__, _rotating_layers(model)
    if not rotating:
        log.warning(
            "%s: which of its layers rotate cannot be traced, so its rotary embedding may reach no layer", class_name
        )
        return
    if window is None and not any(rotating):
        raise ValueError(
            f"{class_name} rotates in no layer where sliding_window in config.json is null, so there is nothing to "
            "extend"
        )
    layers = zip(rotating, layer_types(model.config), strict=False)
    reaching = [rotates for rotates, layer_type in layers if not is_windowed(layer_type)]
    if reaching and not any(reaching):
        size = "" if window is None else f" of {window} tokens"
        raise ValueError(
            f"{class_name} rotates only in layers that read no further than a window{size}; "
            "layers that read the whole input do without positions, so there is nothing to extend"
        )


def _rotating_layers(model: Any) -> list[bool]:
    """Whether each layer applies the rotary embedding that it is given; empty where that cannot be traced.

    A short row passes through the model without values, and each layer's output is asked for its derivatives.
    """
    name, _ = find_rotary(model)
    layers = getattr(model.get_submodule(name.rpartition(".")[0]), "layers", None)
    if layers is None:
        return []
    tables_of_layer: dict[nn.Module, list[Tensor]] = {}
    rotating: dict[nn.Module, bool] = {}

    def detach_tables(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        tables = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(), options.get("position_embeddings"))
        tables_of_layer[layer] = tree_leaves(tables)
        return arguments, {**options, "position_embeddings": tables}

    def trace(layer: nn.Module, _: Any, output: Any) -> Any:
        hidden = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        gradients = torch.autograd.grad(hidden.sum(), tables_of_layer[layer], allow_unused=True)
        rotating[layer] = any(gradient is not None for gradient in gradients)
        return tree_map_only(Tensor, Tensor.detach, output)

    hooks = [layer.register_forward_pre_hook(detach_tables, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(trace) for layer in layers]
    try:
        model.set_attn_implementation("eager")
        with torch.device("meta"):
            # Some matrix products of experts run on meta in bfloat16 only. A mask of four dimensions is used as it is.
            model.to(torch.bfloat16)
            ids = torch.zeros(1, 4, dtype=torch.long)
            model(input_ids=ids, attention_mask=torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16), use_cache=False)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return [rotating.get(layer, False) for layer in layers]
