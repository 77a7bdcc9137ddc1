"""The rotary module that applies a RopeScaling, and putting it into a transformers model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ropewalk.rope.scaling import RopeScaling

Model = TypeVar("Model", bound=nn.Module)


class RotaryEmbedding(nn.Module):
    """cos and sin under rescale factors, n_hat and attention factor, computed in float32 whatever the dtype.

    ``factors`` (rotary_dim / 2) and ``attention_factor`` (scalar) are tensors that gradients flow through.
    """

    inv_freq: Tensor
    factors: Tensor
    attention_factor: Tensor

    def __init__(self, inv_freq: Tensor, scaling: RopeScaling) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.detach().float().clone(), persistent=False)
        self.register_buffer("factors", torch.ones_like(self.inv_freq), persistent=False)
        self.register_buffer("attention_factor", torch.ones((), device=inv_freq.device), persistent=False)
        self.n_hat = 0
        self.set_scaling(scaling)

    def set_scaling(self, scaling: RopeScaling) -> None:
        """Raises ValueError when the factors are for another rotary dimension."""
        scaling.check_rotary_dim(2 * len(self.inv_freq))
        device = self.inv_freq.device
        self.factors = torch.tensor(scaling.factors, dtype=torch.float32, device=device)
        self.attention_factor = torch.tensor(scaling.attention_factor, dtype=torch.float32, device=device)
        self.n_hat = scaling.n_hat
        self.scaling = scaling

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.to(bfloat16) casts buffers too; only the change of device is wanted here.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of shape (rows, length, rotary_dim) in ``x``'s dtype for positions (rows, length)."""
        positions = position_ids[..., None].float()
        with torch.autocast(x.device.type, enabled=False):
            angles = positions * (self.inv_freq / self.factors)
            if self.n_hat:
                angles = torch.where(positions < self.n_hat, positions * self.inv_freq, angles)
            angles = torch.cat((angles, angles), dim=-1)
            cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(x.dtype), sin.to(x.dtype)


@dataclass(frozen=True)
class RotaryShape:
    """What a method needs to know of a model."""

    rotary_dim: int
    base: float
    original_length: int


def _rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False))
    ]


def find_rotary(model: nn.Module) -> tuple[str, nn.Module]:
    """(name, module) of the model's one rotary table.

    Raises:
        ValueError: the model has none, several, or one per layer type.
    """
    found = _rotary_modules(model)
    kind = type(model).__name__
    if not found:
        raise ValueError(f"{kind} has no rotary position embedding on the model; only RoPE models can be extended")
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise ValueError(f"{kind} has {len(found)} rotary tables ({names}); one is supported")
    name, module = found[0]
    tables = [buffer for buffer, _ in module.named_buffers(recurse=False) if buffer.endswith("inv_freq")]
    if "inv_freq" not in tables:
        raise ValueError(f"{kind} has a rotary table per layer type ({', '.join(tables)}); one is supported")
    return name, module


def _plain_inverse_frequencies(model: Any, rotary: Any) -> Tensor:
    """Float32 frequencies without any scaling; recomputed, since the model's own table may be scaled or in bfloat16."""
    if isinstance(rotary, RotaryEmbedding):
        return rotary.inv_freq
    if not hasattr(rotary, "compute_default_rope_parameters"):
        raise ValueError(f"{type(model).__name__} does not say how its plain rotary frequencies are computed")
    plain: Tensor = rotary.compute_default_rope_parameters(_config(model))[0]
    return plain.float().to(rotary.inv_freq.device)


def _config(model: Any) -> Any:
    """The language model's configuration, also of a model that wraps one."""
    return model.config.get_text_config()


def rotary_shape(model: Any) -> RotaryShape:
    """Rotary dimension, base and original window of a transformers model, from its own table and config.

    Raises:
        ValueError: as `find_rotary`.
    """
    _, rotary = find_rotary(model)
    config = _config(model)
    parameters = config.rope_parameters
    if isinstance(rotary, RotaryEmbedding):
        original = rotary.scaling.original_length
    else:
        original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
    inv_freq = _plain_inverse_frequencies(model, rotary)
    return RotaryShape(2 * len(inv_freq), float(parameters["rope_theta"]), int(original))


def extend(model: Model, scaling: RopeScaling) -> Model:
    """Put ``scaling`` into a transformers model in place, over whatever scaling it had, and return the model.

    Raises:
        ValueError: the model has no single rotary table, lays its pairs out in another way, or has
            another rotary dimension than the factors.
    """
    _, rotary = find_rotary(model)
    if isinstance(rotary, RotaryEmbedding):
        rotary.set_scaling(scaling)
        return model
    _check_layout(rotary, type(model).__name__)
    replacement = RotaryEmbedding(_plain_inverse_frequencies(model, rotary), scaling)
    # One table may be reached under several names (shared by the layers); each must see the replacement.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is rotary:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, replacement)
    return model


def _check_layout(rotary: Any, kind: str) -> None:
    """Raise ValueError unless the module gives the cos and sin that RotaryEmbedding gives for its frequencies."""
    refusal = ValueError(f"{kind} lays its rotary pairs out in a way that is not supported")
    x = torch.zeros(1, device=rotary.inv_freq.device)
    positions = torch.arange(4, device=x.device)[None]
    try:
        expected = rotary(x, positions)
    except (TypeError, RuntimeError, IndexError):
        raise refusal from None
    attention_factor = float(getattr(rotary, "attention_scaling", 1.0))
    unscaled = RopeScaling((1.0,) * len(rotary.inv_freq), 1, 1, attention_factor=attention_factor)
    found = RotaryEmbedding(rotary.inv_freq, unscaled)(x, positions)
    if not (
        isinstance(expected, tuple)
        and len(expected) == 2
        and all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, found, strict=True))
    ):
        raise refusal


def current_scaling(model: nn.Module) -> RopeScaling | None:
    """The scaling that `extend` put into the model, or None."""
    _, rotary = find_rotary(model)
    return rotary.scaling if isinstance(rotary, RotaryEmbedding) else None
