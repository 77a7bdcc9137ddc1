"""A wrapper that makes the rotary module of a model apply a RopeScaling."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from ropewalk.rope.scaling import RopeScaling


class RotaryEmbedding(nn.Module):
    """Makes a model's rotary module compute its cos and sin under a scaling.

    The layout of the pairs, the axes of positions and the dtype of the result are those of the wrapped module, whose
    forward pass reads the scaled frequencies. Frequencies are float32 whatever the model's dtype. Gradients flow
    through ``factors`` of shape (rotary_dim / 2) and the scalar ``attention_factor``.
    """

    inv_freq: Tensor
    """Frequencies without any scaling, shape (rotary_dim / 2)."""
    factors: Tensor
    attention_factor: Tensor

    def __init__(
        self, rotary: nn.Module, inv_freq: Tensor, scaling: RopeScaling, *, layer_type: str | None = None
    ) -> None:
        """Wrap ``rotary``.

        Args:
            inv_freq: its frequencies without any scaling.
            layer_type: type of the layers whose table is scaled, where the module has a table per layer type.
        """
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.detach().float().clone(), persistent=False)
        self.register_buffer("factors", torch.ones_like(self.inv_freq), persistent=False)
        self.register_buffer("attention_factor", torch.ones((), device=inv_freq.device), persistent=False)
        self.rotary = rotary
        self.layer_type = layer_type
        self._prefix = f"{layer_type}_" if layer_type else ""
        self._register_state_dict_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]
        self.set_scaling(scaling)

    def set_scaling(self, scaling: RopeScaling) -> None:
        """Apply ``scaling`` from now on; raises ValueError where its factors are for another rotary dimension."""
        scaling.check_rotary_dim(2 * len(self.inv_freq))
        device = self.inv_freq.device
        self.factors = torch.tensor(scaling.factors, dtype=torch.float32, device=device)
        self.attention_factor = torch.tensor(scaling.attention_factor, dtype=torch.float32, device=device)
        self.n_hat = scaling.n_hat
        self.scaling = scaling

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.to(bfloat16) would cast the buffers too, so only the device is taken from it.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def __getattr__(self, name: str) -> Any:
        # Models read the config or the layer types of their rotary module.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "rotary":
                raise
            return getattr(self.rotary, name)

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped module returns, cos and sin or complex numbers; ``position_ids`` have its shape."""
        if not self.scales(*args, **kwargs):
            return self.rotary(x, position_ids, *args, **kwargs)
        # The method's decorators would choose frequencies by the config, and stop gradients (torch.no_grad).
        compute = inspect.unwrap(type(self.rotary).forward)
        with torch.autocast(x.device.type, enabled=False):
            with self._computing(self.inv_freq / self.factors):
                scaled = compute(self.rotary, x, position_ids, *args, **kwargs)
            if not self.n_hat:
                return scaled
            with self._computing(self.inv_freq):
                plain = compute(self.rotary, x, position_ids, *args, **kwargs)
        keeps_plain = (text_positions(position_ids) < self.n_hat)[..., None]
        if isinstance(scaled, Tensor):
            return torch.where(keeps_plain, plain, scaled)
        return tuple(torch.where(keeps_plain, *tables) for tables in zip(plain, scaled, strict=True))

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of a call for the layers whose table is scaled."""
        return {"layer_type": self.layer_type} if self.layer_type else {}

    def agrees_with(self, other: nn.Module, *, length: int) -> bool:
        """Whether ``other``, on the same device, computes the same table for an input of ``length`` tokens.

        The last position makes a class choose its frequencies. The first ones are compared, where angles are hardly
        rounded.
        """
        x = torch.zeros(1, device=self.inv_freq.device)
        positions = torch.tensor([[*range(min(length, 4)), length - 1]], device=x.device)
        tables = (module(x, positions, **self.options) for module in (self, other))
        parts = (table if isinstance(table, tuple) else (table,) for table in tables)
        return all(
            ours.shape == theirs.shape and torch.allclose(ours[..., :-1, :], theirs[..., :-1, :], rtol=0, atol=1e-5)
            for ours, theirs in zip(*parts, strict=True)
        )

    def scales(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call with these further arguments is for the layers whose table is scaled."""
        return self.layer_type is None or self.layer_type in (*args, kwargs.get("layer_type"))

    @contextmanager
    def _computing(self, inv_freq: Tensor) -> Iterator[None]:
        """Let the wrapped module compute with ``inv_freq`` and the attention factor."""
        values: dict[str, Any] = {
            f"{self._prefix}inv_freq": inv_freq,
            f"{self._prefix}attention_scaling": self.attention_factor,
        }
        if hasattr(self.rotary, "rope_init_fn"):
            # Phi-3.5-MoE computes its frequencies in every forward pass, and chooses the factor by the config.
            values |= {
                "rope_init_fn": lambda *_, **__: (inv_freq, self.attention_factor),
                "config": _with_plain_rope(self.rotary.config),
            }
        previous = {name: getattr(self.rotary, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self.rotary, name, value)
            yield
        finally:
            for name, value in previous.items():
                setattr(self.rotary, name, value)


def text_positions(position_ids: Tensor) -> Tensor:
    """Positions of shape (batch, length); the axes of multimodal ones hold the same number for text."""
    return position_ids[0] if position_ids.ndim == 3 else position_ids


def _with_plain_rope(config: Any) -> Any:
    plain = copy(config)
    plain.rope_parameters = {**config.rope_parameters, "rope_type": "default"}
    return plain


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Name the weights of the wrapped module, if its class has any, as the checkpoint does."""
    for name in [name for name in state if name.startswith(f"{prefix}rotary.")]:
        state[prefix + name.removeprefix(f"{prefix}rotary.")] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, RotaryEmbedding)
    for name in module.rotary.state_dict():
        if prefix + name in state:
            state[f"{prefix}rotary.{name}"] = state.pop(prefix + name)
