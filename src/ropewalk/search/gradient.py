"""Gradient search: lambda and t learned through the frozen model, a few segments a step.

log lambda = cumsum(softplus(raw)) is non-decreasing by construction; Adam with cosine decay.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ropewalk.models.loss import mean_loss
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary
from ropewalk.search.space import SearchSpace

_SMALLEST_INCREMENT = 0.005
"""Where softplus is saturated the gradient vanishes and the search stalls."""

Step = tuple[float, RopeScaling]
"""Loss of the step's segments in nats, and the point reached after it."""


def _softplus_inverse(value: Tensor) -> Tensor:
    return torch.log(torch.expm1(value))


def learn_scaling(
    model: Any,
    space: SearchSpace,
    batch: Callable[[int], Tensor],
    *,
    start: RopeScaling,
    steps: int,
    learning_rate: float,
    first: RopeScaling | None = None,
    checkpointing: bool = False,
    kept: str | None = None,
    keep: Callable[[str], None] = lambda state: None,
) -> Iterator[Step]:
    """Yield each step, the ones in ``kept`` first; the model's weights do not change.

    Args:
        batch: step -> token rows (rows, length), BOS first and EOS last.
        start: where to begin, a point of ``space``.
        first: earlier scaling that the learned one is applied on top of.
        learning_rate: of log lambda's increments before softplus; log t learns at a sixteenth of it,
            within the space's bounds.
        checkpointing: recompute activations in the backward pass.
        kept: where an earlier call was, the last that it gave to ``keep``: it goes on from there to the bit.
        keep: called after every step with where it is.

    Raises:
        ValueError: a step's loss or what it leads to is not a number.
    """

    def composed(scaling: RopeScaling) -> RopeScaling:
        return first.then(scaling) if first else scaling

    extend(model, composed(start))
    rotary = find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    device = rotary.inv_freq.device
    before = torch.tensor(first.factors if first else (1.0,) * space.pairs, device=device)
    increments = torch.diff(torch.tensor(start.factors, device=device).log(), prepend=torch.zeros(1, device=device))
    raw = _softplus_inverse(increments.clamp(min=_SMALLEST_INCREMENT)).requires_grad_()
    log_t = torch.tensor(math.log(start.attention_factor), device=device, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [raw], "lr": learning_rate}, {"params": [log_t], "lr": learning_rate / 16}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    path: list[Step] = []
    if kept is not None:
        saved = json.loads(kept)
        with torch.no_grad():
            raw.copy_(torch.tensor(saved["raw"]))
            log_t.copy_(torch.tensor(saved["log_t"]))
        moments = {
            int(place): {name: torch.tensor(value) for name, value in of_parameter.items()}
            for place, of_parameter in saved["optimizer"]["state"].items()
        }
        optimizer.load_state_dict({**saved["optimizer"], "state": moments})
        schedule.load_state_dict(saved["schedule"])
        path = [(loss, RopeScaling.from_json(text)) for loss, text in saved["path"]]
        yield from path
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers recomputes in training mode only; nothing of ours drops out.
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
    try:
        for step in range(len(path), steps):
            rotary.factors = before * torch.cumsum(F.softplus(raw), 0).exp()
            rotary.attention_factor = log_t.exp()
            rows = batch(step).to(device)
            loss = mean_loss(model, rows, ignore=int(rows[0, -1]))
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss of gradient step {step} is {loss.item()}; "
                    "lower search.gradient_learning_rate or set model.dtype=float32"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                log_t.clamp_(*map(math.log, space.attention_factors))
                learned = torch.cumsum(F.softplus(raw), 0).exp().cpu().numpy()
            if not np.isfinite(learned).all():
                raise ValueError(
                    f"gradient step {step} leads to rescale factors that are not numbers; "
                    "lower search.gradient_learning_rate"
                )
            scaling = space.point(learned, start.n_hat, math.exp(log_t.item()))
            path.append((loss.item(), replace(scaling, method="gradient")))
            state = {
                "raw": raw.detach(),
                "log_t": log_t.detach(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "path": [(value, point.to_json()) for value, point in path],
            }
            keep(json.dumps(state, default=Tensor.tolist))
            yield path[-1]
    finally:
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
        if checkpointing:
            model.gradient_checkpointing_disable()
            model.eval()
        extend(model, composed(start))
