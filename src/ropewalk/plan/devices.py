"""Speed and memory of a device: a published peak, or measured on this machine's processor."""

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from ropewalk.config import PlanConfig
from ropewalk.costs.shape import ModelShape, build, shape_of, with_layers
from ropewalk.costs.work import Kind, Rate, Work, flops_of, forward_flops
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.models.precision import is_bfloat16_fast
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary

_SHORT, _ROWS = 256, 8
"""Length and largest number of the rows that linear maps are timed with."""
_LINEAR_FLOPS, _ATTENTION_FLOPS = 1e11, 2e10
"""Largest FLOPs of the pass with which linear maps are timed, and FLOPs of the row with which attention is timed."""
_LONGEST_TIMED = 8192
_LARGEST_LAYERS, _LARGEST_VOCABULARY = 3, 16_384
_LARGE = 1e8
"""Number of parameters of a layer from which a single one is timed."""
_REPEATS = 3
_LONG_ENOUGH = 3.0
"""Seconds of timed steps after which no further one is taken."""


@dataclass(frozen=True)
class Device:
    name: str
    memory: float
    """Bytes that a stage can use."""
    gpu: bool
    rate: Callable[[Work], Rate] = field(compare=False)

    @property
    def mixes(self) -> bool:
        """Whether precision=auto means bf16 on this device."""
        return self.gpu or is_bfloat16_fast()


def device_of(config: PlanConfig, model_config: Any) -> Device:
    """The device that ``config`` names; without a published peak, this machine's processor is timed with the model."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = (config.memory_gib * 2**30 if config.memory_gib else float(machine)) * (1 - config.reserve)
    if config.tflops is not None:
        return Device(config.name, memory, True, lambda work: published_rate(config, work))

    @cache
    def measured(kind: Kind, dtype: str, mixed: bool) -> Rate:
        return measured_rate(model_config, kind=kind, mixed=mixed, dtype=dtype)

    return Device(config.name, memory, False, lambda work: measured(work.kind, work.dtype, work.mixed))


def published_rate(config: PlanConfig, work: Work) -> Rate:
    """FLOPs a second in the dtype that ``work`` computes in; raises ValueError where none is given for it."""
    is_half = work.computes_in in ("bfloat16", "float16")
    tflops = config.tflops if is_half else config.float32_tflops
    if tflops is None:
        raise ValueError(
            f"plan.float32_tflops must be given with plan.tflops, since {work.stage} computes in {work.computes_in}; "
            "found none"
        )
    reached = tflops * 1e12 * config.efficiency
    return Rate(reached, reached)


def measured_rate(
    config: Any, *, kind: Kind, mixed: bool, dtype: str, clock: Callable[[], float] = time.perf_counter
) -> Rate:
    """FLOPs a second of this machine's processor on a model of ``config`` with random weights and a few layers."""
    small = _small(config)
    shape = shape_of(small, name="timed")
    attention = _attention_rate(shape, kind=kind, dtype=torch.bfloat16 if mixed else getattr(torch, dtype), clock=clock)
    row_flops = flops_of(Work("", "", kind, _SHORT, 1, 1, 1), shape)
    rows = max(1, min(_ROWS, int(_LINEAR_FLOPS / row_flops.total)))
    step = _step(build(small, dtype=getattr(torch, dtype)), shape, kind, torch.full((rows, _SHORT), 3), mixed)
    whole = _fastest(step, clock)
    # Attention over short rows is a small part, and may be faster than measured, since it fits into the caches.
    linear = max(whole - rows * row_flops.attention / attention, whole / 4)
    return Rate(rows * row_flops.linear / linear, attention)


def _small(config: Any) -> Any:
    """``config`` with few layers and a small vocabulary, which run at the same FLOPs a second as many."""
    small = copy.deepcopy(config.get_text_config())
    small.vocab_size = min(small.vocab_size, _LARGEST_VOCABULARY)
    small.pad_token_id = None
    large = shape_of(with_layers(small, 1), name="").layer_parameters > _LARGE
    return with_layers(small, 1 if large else min(small.num_hidden_layers, _LARGEST_LAYERS))


def _attention_rate(shape: ModelShape, *, kind: Kind, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOPs a second of causal attention over a row long enough to fill the processor."""
    layer = replace(shape, full_layers=1, windowed_layers=0, value_dim=shape.head_dim)
    length = min(int(math.sqrt(_ATTENTION_FLOPS / forward_flops(layer, length=1).attention)), _LONGEST_TIMED)
    query, key, value = torch.randn(3, 1, shape.heads, length, shape.head_dim, dtype=dtype).unbind(0)
    for tensor in (query, key, value):
        tensor.requires_grad_(kind != "read")

    def step() -> None:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if kind != "read":
            torch.autograd.grad(output.sum(), (query, key, value))

    flops = flops_of(Work("", "", kind, length, 1, 1, 1), layer).attention
    return flops / _fastest(step, clock)


def _fastest(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few steps, after a first one that fills the caches of libraries."""
    step()
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _LONG_ENOUGH:
        start = clock()
        step()
        times.append(clock() - start)
    return min(times)


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
            if kind != "train":
                rotary.factors = torch.ones(pairs, requires_grad=True)
            mean_loss(model, rows).backward()
            model.zero_grad()

    return step
