"""Rescale factors and attention factor as trainable parameters; factors never decrease with the pair's index."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from ropewalk.rope.embedding import RotaryEmbedding
from ropewalk.rope.scaling import RopeScaling

_GRADIENT_SCALE = 1e-3


class LearnedScaling(nn.Module):
    """log lambda = first + cumsum(increments) with increments >= 0, and log t; float32 whatever the model's dtype.

    Training starts exactly at ``scaling``, with its factors raised to their running maximum; increments through a
    softplus, which is never 0, could not start there. `project` sets increments that an optimizer step made negative
    to 0.
    """

    def __init__(self, scaling: RopeScaling, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        logs = torch.tensor(scaling.factors, dtype=torch.float32, device=device).log().cummax(0).values
        self.first = nn.Parameter(logs[:1].clone())
        self.increments = nn.Parameter(logs.diff())
        self.log_t = nn.Parameter(torch.tensor(scaling.attention_factor, dtype=torch.float32, device=device).log())
        self._start = scaling
        for parameter in self.parameters():
            # The gradient with respect to a factor is far larger than that of a weight, and gradient clipping would
            # scale down the whole step because of it. Adam divides by its size anyway.
            parameter.register_hook(lambda gradient: gradient * _GRADIENT_SCALE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # As in RotaryEmbedding: the device may change, the dtype never.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def factors(self) -> Tensor:
        """Rescale factors of shape (rotary_dim / 2), with gradient."""
        return torch.cat((self.first, self.first + torch.cumsum(self.increments, 0))).exp()

    def put_into(self, rotary: RotaryEmbedding) -> None:
        """Make ``rotary`` apply these factors in later forward passes, with gradient."""
        rotary.factors, rotary.attention_factor = self.factors(), self.log_t.exp()

    @torch.no_grad()
    def project(self) -> None:
        """Set negative increments to 0, which an optimizer step may have made."""
        self.increments.clamp_(min=0)

    @torch.no_grad()
    def scaling(self) -> RopeScaling:
        """The learned scaling, with the lengths and n_hat of the one that training started from."""
        factors, t = self.factors().tolist(), float(self.log_t.exp())
        return replace(self._start, factors=tuple(factors), attention_factor=t, method="learned")
