"""The warm start, before the first trial: starts and published methods are read, and a gradient learns from the best.

log lambda = cumsum(softplus(raw)) is non-decreasing by construction; Adam with cosine decay.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ropewalk.models.activation_checkpointing import checkpointed
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary
from ropewalk.rope.query_scales import query_scales as scales_of
from ropewalk.search.fitness import Evaluation
from ropewalk.search.space import SearchSpace
from ropewalk.search.token_weights import WeightedRows

NOT_A_NUMBER = "every candidate made the model emit NaN or infinite losses; check the model and its dtype"
_SMALLEST_INCREMENT = 0.005
"""Where softplus is saturated the gradient vanishes and the search stalls."""

Step = tuple[float, RopeScaling]
"""Loss of the step's segments in nats, and the point reached after it."""
StepState = dict[str, Any]
"""Loss and gradients of a step as JSON values, from which the step can be repeated to the bit without the model."""


def learn_scaling(
    model: Any,
    space: SearchSpace,
    batch: Callable[[int], WeightedRows],
    *,
    start: RopeScaling,
    steps: int,
    learning_rate: float,
    first: RopeScaling | None = None,
    query_scales: str = "none",
    activation_checkpointing: str = "none",
    kept: Sequence[StepState] = (),
    keep: Callable[[list[StepState]], None] = lambda states: None,
) -> Iterator[Step]:
    """Yield each step, those in ``kept`` first; the model's weights do not change.

    Args:
        batch: step -> weighted rows; where their losses have no weights, an EOS at a row's end is not predicted.
        start: where to begin, a point of ``space``.
        first: earlier scaling that the learned one is applied on top of.
        learning_rate: rate for log lambda's increments before softplus; log t learns at a sixteenth of it, within the
            space's bounds, and logarithms of query scales at half of it.
        query_scales: head to learn a scale of the queries of each head, pair for one of each pair of each head, none
            to keep those of ``start``.
        activation_checkpointing: none, full or offload, as `ropewalk.models.activation_checkpointing` does them.
        kept: the states that an earlier call last passed to ``keep``; learning resumes from there, bit for bit.
        keep: called after every step with the states of all steps so far.

    Raises:
        ValueError: the loss of a step, or what the step leads to, is not a number; or the model's queries cannot be
            scaled.
    """
    whole_start = first.then(start) if first else start
    extend(model, whole_start)
    rotary = find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    device = rotary.inv_freq.device
    first_factors = torch.tensor(first.factors if first else (1.0,) * space.pairs, device=device)
    increments = torch.diff(torch.tensor(start.factors, device=device).log(), prepend=torch.zeros(1, device=device))
    # The inverse of softplus, and what it gives above the increments at the start, which is taken off again.
    raw = torch.log(torch.expm1(increments.clamp(min=_SMALLEST_INCREMENT))).requires_grad_()
    excess = (_SMALLEST_INCREMENT - increments).clamp(min=0)
    lowest = torch.where(excess > 0, torch.log(torch.expm1(excess)), -torch.inf)

    def learned_factors() -> Tensor:
        return torch.cumsum(F.softplus(raw) - excess, 0).exp()

    log_t = torch.tensor(math.log(start.attention_factor), device=device, requires_grad=True)
    learned = [raw, log_t]
    rates = [{"params": [raw], "lr": learning_rate}, {"params": [log_t], "lr": learning_rate / 16}]
    log_scales: Tensor | None = None
    if query_scales != "none":
        scales = scales_of(model)
        shape = (scales.layers, scales.heads, *([space.pairs] if query_scales == "pair" else []))
        initial = scales.table(start)
        initial = torch.ones(scales.layers, scales.heads, device=device) if initial is None else initial
        log_scales = initial.log().view(*initial.shape, *[1] * (len(shape) - initial.ndim)).expand(shape).clone()
        log_scales.requires_grad_()
        learned.append(log_scales)
        rates.append({"params": [log_scales], "lr": learning_rate / 2})
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    states = list(kept)

    def read(step: int) -> StepState:
        rotary.factors = first_factors * learned_factors()
        rotary.attention_factor = log_t.exp()
        if log_scales is not None:
            scales.set(log_scales.exp())
        loss = _loss(model, batch(step), device)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss of gradient step {step} is {loss.item()}; "
                "lower search.gradient_learning_rate or set model.dtype=float32"
            )
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad.tolist() for parameter in learned if parameter.grad is not None]
        return {"loss": loss.item(), "gradients": gradients}

    required_grad = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    if activation_checkpointing != "none":
        # transformers recomputes in training mode only; dropout stays off.
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
    try:
        with checkpointed(model, activation_checkpointing):
            for step in range(steps):
                is_new = step == len(states)
                if is_new:
                    states.append(read(step))
                state = states[step]
                for parameter, gradient in zip(learned, state["gradients"], strict=True):
                    parameter.grad = torch.tensor(gradient, device=device)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    raw.clamp_(min=lowest)
                    log_t.clamp_(*map(math.log, space.attention_factors))
                    factors = learned_factors().cpu().numpy()
                if not np.isfinite(factors).all():
                    raise ValueError(
                        f"gradient step {step} leads to rescale factors that are not numbers; "
                        "lower search.gradient_learning_rate"
                    )
                if is_new:
                    keep(list(states))
                point = space.point(factors, start.n_hat, math.exp(log_t.item()))
                table = start.query_scales if log_scales is None else _rows(log_scales.detach().exp())
                yield state["loss"], replace(point, query_scales=table, method="gradient")
    finally:
        for parameter, flag in zip(model.parameters(), required_grad, strict=True):
            parameter.requires_grad_(flag)
        if activation_checkpointing != "none":
            model.eval()
        extend(model, whole_start)


def _rows(scales: Tensor) -> tuple[tuple[float, ...], ...]:
    """A table of query scales as a `RopeScaling` has it; their fourth decimal no longer shows in any loss."""
    return tuple(tuple(round(scale, 4) for scale in row) for row in scales.flatten(1).tolist())


def _loss(model: Any, weighted: WeightedRows, device: torch.device) -> Tensor:
    """Weighted loss in nats of the rows, with gradient; the EOS at the end of rows without weights is not predicted."""
    rows = weighted.rows.to(device)
    if weighted.weights is None:
        return mean_loss(model, rows, ignore=int(rows[0, -1]))
    return (token_losses(model, rows) * weighted.weights[:, 1:].to(device)).sum()


@dataclass(frozen=True)
class WarmStart:
    """What was read and learned before the first trial."""

    published: tuple[RopeScaling, ...] = ()
    """Starts and published methods."""
    path: tuple[Step, ...] = ()
    """Loss and point of every gradient step."""
    known: dict[RopeScaling, Evaluation] = field(default_factory=dict)
    """Points that are read already: the published ones and the path's end."""
    seconds: float = 0.0


def warm_start(
    kept: Mapping[str, Any],
    keep: Callable[[str, Any], None],
    candidates: Sequence[RopeScaling],
    starts: Sequence[RopeScaling],
    *,
    read: Callable[[RopeScaling], Evaluation],
    learn: Callable[[RopeScaling, Sequence[StepState], Callable[[list[StepState]], None]], list[Step]],
) -> WarmStart:
    """Read ``candidates``, learn from the best start, and read where that ends.

    Args:
        kept: what an earlier call passed to ``keep`` before it was killed; none of it is computed again.
        keep: (key, JSON value); called after every read and every gradient step.
        starts: candidates to learn from; where none of them has a loss, the best candidate is taken.
        learn: (start, step states of an earlier call, function that keeps those of this call) -> path.

    Raises:
        ValueError: none of the candidates has a loss.
    """
    known: dict[RopeScaling, Evaluation] = {}
    seconds = 0.0

    def read_point(point: RopeScaling) -> None:
        nonlocal seconds
        key = f"read {len(known)}"
        if key in kept:
            values, elapsed = kept[key], kept[key]["seconds"]
            # JSON has turned the blocks' numbers into text.
            blocks = {int(block): loss for block, loss in values["blocks"].items()}
            known[point] = Evaluation(values["loss"], values["forward_tokens"], blocks)
        else:
            start_seconds = time.perf_counter()
            known[point], elapsed = read(point), time.perf_counter() - start_seconds
            keep(key, {**asdict(known[point]), "seconds": elapsed})
        seconds += elapsed

    for candidate in candidates:
        read_point(candidate)
    losses = {point: math.inf if read.loss is None else read.loss for point, read in known.items()}
    start = min(candidates, key=lambda point: (losses[point] == math.inf, point not in starts, losses[point]))
    if not math.isfinite(losses[start]):
        raise ValueError(NOT_A_NUMBER)
    gradient = kept.get("gradient", {"steps": [], "seconds": 0.0})
    gradient_start = time.perf_counter() - gradient["seconds"]

    def keep_steps(states: list[StepState]) -> None:
        nonlocal gradient
        gradient = {"steps": states, "seconds": time.perf_counter() - gradient_start}
        keep("gradient", gradient)

    path = learn(start, gradient["steps"], keep_steps)
    seconds += gradient["seconds"]
    if path and path[-1][1] not in known:
        read_point(path[-1][1])
    return WarmStart(tuple(candidates), tuple(path), known, seconds)
