"""What a device computes in a second and holds: a published peak, or this machine's processor, measured."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from ropewalk.config import PlanConfig
from ropewalk.costs.shape import ModelShape, build, shape_of, with_layers
from ropewalk.costs.work import Kind, Rate, Work, flops_of, forward_flops
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary

_SHORT, _ROWS = 256, 8
"""Tokens of the rows, and their number, that linear maps are timed with."""
_ATTENTION_FLOPS = 2e10
"""Of the one row that attention is timed with."""
_LONGEST_TIMED = 8192
_LARGEST_LAYERS = 3
_REPEATS = 3


@dataclass(frozen=True)
class Device:
    name: str
    memory: float
    """Bytes."""
    rate: Callable[[Kind], Rate] = field(compare=False)
    mixed: bool
    """Whether a precision of auto means bf16 there."""


def device_of(config: PlanConfig, model_config: Any, *, mixed: bool, dtype: str) -> Device:
    """The device that ``config`` names; without a published peak this machine's processor is timed with the model.

    Args:
        mixed: whether training on this machine's processor is in bf16.
    """
    memory = config.memory_gib * 2**30 if config.memory_gib else _machine_memory()
    if config.tflops is not None:
        reached = config.tflops * 1e12 * config.efficiency
        return Device(config.name, memory, lambda kind: Rate(reached, reached), True)
    known: dict[Kind, Rate] = {}

    def measured(kind: Kind) -> Rate:
        if kind not in known:
            known[kind] = measured_rate(model_config, kind=kind, mixed=mixed and kind == "train", dtype=dtype)
        return known[kind]

    return Device(config.name, memory, measured, mixed)


def _machine_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measured_rate(
    config: Any, *, kind: Kind, mixed: bool, dtype: str, clock: Callable[[], float] = time.perf_counter
) -> Rate:
    """FLOPs a second of this machine's processor on a random model of ``config`` with a few of its layers."""
    small = with_layers(config, min(config.num_hidden_layers, _LARGEST_LAYERS))
    shape = shape_of(small, name="timed")
    attention = _attention_rate(shape, kind=kind, dtype=torch.bfloat16 if mixed else getattr(torch, dtype), clock=clock)
    step = _step(build(small, dtype=getattr(torch, dtype)), shape, kind, torch.full((_ROWS, _SHORT), 3), mixed)
    flops = flops_of(Work("", "", kind, _SHORT, _ROWS, _ROWS, _ROWS), shape)
    whole = _fastest(step, clock)
    # Attention over short rows is a small part, and may come out of the caches.
    linear = max(whole - flops.attention / attention, whole / 4)
    return Rate(flops.linear / linear, attention)


def _attention_rate(shape: ModelShape, *, kind: Kind, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOPs a second of causal attention over a row long enough to fill the processor."""
    one = replace(shape, layers=1)
    length = int(math.sqrt(_ATTENTION_FLOPS / forward_flops(one, length=1).attention))
    length = min(length, _LONGEST_TIMED)
    query, key, value = torch.randn(3, 1, shape.heads, length, shape.head_dim, dtype=dtype).unbind(0)
    for tensor in (query, key, value):
        tensor.requires_grad_(kind != "read")

    def step() -> None:
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if kind != "read":
            torch.autograd.grad(found.sum(), (query, key, value))

    flops = flops_of(Work("", "", kind, length, 1, 1, 1), one).attention
    return flops / _fastest(step, clock)


def _fastest(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few, after one that sets up what libraries keep."""
    step()
    return min(_seconds(step, clock) for _ in range(_REPEATS))


def _seconds(step: Callable[[], None], clock: Callable[[], float]) -> float:
    begun = clock()
    step()
    return clock() - begun


def _step(model: Any, shape: ModelShape, kind: Kind, rows: torch.Tensor, mixed: bool) -> Callable[[], None]:
    pairs = shape.rotary.rotary_dim // 2
    extend(model, RopeScaling((1.0,) * pairs, 1, rows.shape[1]))
    rotary = find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    model.requires_grad_(kind == "train")

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            if kind == "read":
                with torch.no_grad():
                    token_losses(model, rows)
                return
            if kind == "learn":
                rotary.factors = torch.ones(pairs, requires_grad=True)
            mean_loss(model, rows).backward()
            model.zero_grad()

    return step
