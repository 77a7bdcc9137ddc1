"""What a device computes in a second and holds: a published peak, or this machine's processor, measured."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from ropewalk.config import PlanConfig
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.plan.costs import Kind, Rate, Work, flops_of
from ropewalk.plan.shape import ModelShape, build, shape_of, with_layers
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary

_LENGTHS = (256, 1024, 2048)
"""Tokens of the rows that are timed; from one to another only attention's share changes."""
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
    model = build(small, dtype=getattr(torch, dtype))
    flops, times = [], []
    for length in _LENGTHS:
        rows = max(1, _LENGTHS[-1] // length)
        work = Work("", "", kind, length, rows, rows, rows)
        once = flops_of(work, shape)
        step = _step(model, shape, kind, torch.full((rows, length), 3), mixed)
        step()
        flops.append([once.linear, once.attention])
        times.append(min(_seconds(step, clock) for _ in range(_REPEATS)))
    scale = np.asarray(times)[:, None]
    # Relative errors count, so that short rows weigh as much as long ones.
    (linear, attention), _ = nnls(np.asarray(flops) / scale, np.ones(len(times)))
    fastest = np.asarray(flops).sum(1) / np.asarray(times)
    return Rate(*(1 / part if part > 0 else float(fastest.max()) for part in (linear, attention)))


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
            mean_loss(model, rows).backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

    return step
