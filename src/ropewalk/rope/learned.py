"""Rescale factors and attention factor as parameters, non-decreasing whatever the optimizer does to them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from ropewalk.rope.rotary import RotaryEmbedding
from ropewalk.rope.scaling import RopeScaling

_GRADIENT_SHARE = 1e-3


class LearnedScaling(nn.Module):
    """log lambda = first + cumsum(increments) with increments >= 0, and log t; float32 whatever the model's dtype.

    It starts exactly from ``scaling`` (whose factors are raised to be non-decreasing where they are not), unlike a
    softplus, which has no zero. `project` puts the increments back where a step of the optimizer left the allowed
    half-space.
    """

    def __init__(self, scaling: RopeScaling, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        logs = torch.tensor(scaling.factors, dtype=torch.float32, device=device).log().cummax(0).values
        self.first = nn.Parameter(logs[:1].clone())
        self.increments = nn.Parameter(logs.diff())
        self.log_t = nn.Parameter(torch.tensor(scaling.attention_factor, dtype=torch.float32, device=device).log())
        self._start = scaling
        for parameter in self.parameters():
            # A gradient by lambda is far larger than one by a weight and would have the whole step clipped for it;
            # Adam divides by its size anyway.
            parameter.register_hook(lambda gradient: gradient * _GRADIENT_SHARE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # As in RotaryEmbedding: a change of device, never of dtype.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def factors(self) -> Tensor:
        """(rotary_dim / 2), with gradient."""
        return torch.cat((self.first, self.first + torch.cumsum(self.increments, 0))).exp()

    def put_into(self, rotary: RotaryEmbedding) -> None:
        """Let ``rotary`` rotate by these factors in passes to come, with gradient."""
        rotary.factors, rotary.attention_factor = self.factors(), self.log_t.exp()

    @torch.no_grad()
    def project(self) -> None:
        self.increments.clamp_(min=0)

    @torch.no_grad()
    def scaling(self) -> RopeScaling:
        """What was learned, with the lengths and n_hat of the start."""
        factors, t = self.factors().tolist(), float(self.log_t.exp())
        return replace(self._start, factors=tuple(factors), attention_factor=t, method="learned")
