"""FLOPs, time and memory of a piece of work, as formulas of a model's shape."""

from dataclasses import dataclass
from typing import Literal

from ropewalk.costs.shape import ModelShape

Kind = Literal["read", "learn", "train"]
"""read: forward passes only. learn: gradients of factors through frozen weights. train: gradients of the weights."""
# Forward passes that a pass with its backward costs, in linear maps and in attention (whose backward takes five
# products where its forward takes two).
_LINEAR: dict[Kind, float] = {"read": 1, "learn": 2, "train": 3}
_ATTENTION: dict[Kind, float] = {"read": 1, "learn": 3.5, "train": 3.5}


@dataclass(frozen=True)
class Work:
    """``rows`` rows of ``length`` tokens through the model, ``rows_at_once`` in a pass, shared out over devices."""

    stage: str
    what: str
    kind: Kind
    length: int
    rows: int
    rows_at_once: int
    rows_per_step: int
    """Rows between two updates of the weights; rows_at_once where there are none."""
    devices: int = 1
    """Devices that work on it, each on rows or on a slice of them."""
    context: int = 1
    """Devices that share a row, each holding a slice of it."""
    ring: bool = False
    """Whether these hand their keys and values around, where otherwise each gathers those of all."""
    sharded: bool = False
    """Whether weights, gradients and optimizer states are split over all devices (FSDP)."""
    recompute: bool = False
    """Whether the backward pass computes every layer's activations anew (activation checkpointing)."""
    offload: bool = False
    """Whether the inputs that it computes them from lie in the processor's memory meanwhile."""
    eight_bit: bool = False
    """Whether the optimizer keeps its two numbers of a weight in a byte each."""
    dtype: str = "float32"
    """Of the weights."""
    mixed: bool = False
    """Whether activations are bf16 over float32 weights."""

    @property
    def dtype_bytes(self) -> int:
        """Of a weight."""
        return 4 if self.dtype == "float32" else 2

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def tokens_per_device(self) -> int:
        """Tokens whose activations a device holds at once."""
        return self.rows_at_once * -(-self.length // self.context)


@dataclass(frozen=True)
class Flops:
    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def forward_flops(shape: ModelShape, *, length: int) -> Flops:
    """Of one row in a forward pass; a multiplication and an addition are two, and causal attention reads half."""
    linear = 2.0 * length * (shape.layers * shape.layer_matrices + shape.hidden * shape.vocab)
    return Flops(linear, 2.0 * shape.layers * shape.heads * shape.head_dim * length**2)


def flops_of(work: Work, shape: ModelShape) -> Flops:
    """Of all rows, what is computed a second time included."""
    once = forward_flops(shape, length=work.length)
    again = 1 if work.recompute and work.kind != "read" else 0
    linear, attention = _LINEAR[work.kind] + again, _ATTENTION[work.kind] + again
    return Flops(work.rows * once.linear * linear, work.rows * once.attention * attention)


@dataclass(frozen=True)
class Rate:
    """FLOPs a second that a device reaches in linear maps and in attention."""

    linear: float
    attention: float


def seconds(flops: Flops, rate: Rate, *, devices: int = 1) -> float:
    return (flops.linear / rate.linear + flops.attention / rate.attention) / devices


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the fullest moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_of(work: Work, shape: ModelShape, activations: float) -> Memory:
    """AdamW keeps two numbers of a weight's size; sharded layers are whole on a device only while they are computed.

    Args:
        activations: bytes of a pass over `Work.tokens_per_device` tokens beside all else, on the device.
    """
    weights = float(shape.parameters * work.dtype_bytes)
    gradients = optimizer = 0.0
    if work.kind == "train":
        gradients, optimizer = weights, 2.0 * (shape.parameters if work.eight_bit else weights)
    held = activations
    activation_bytes = 2 if work.mixed else work.dtype_bytes
    if work.context > 1:
        keys_and_values = 2 * shape.kv_heads * shape.head_dim * work.rows_at_once * work.length
        if work.ring:
            # Of two devices at a time, and float32 gradients of both.
            held += 2 * keys_and_values / work.context * (activation_bytes + 4)
        else:
            # A layer's of the whole row, kept for the backward pass, and one layer's gradients of them.
            held += keys_and_values * activation_bytes * (2 if work.recompute else shape.layers + 1)
    if work.sharded:
        whole = (2 * shape.layer_parameters + shape.parameters - shape.layers * shape.layer_parameters) * (
            work.dtype_bytes
        )
        weights, gradients, optimizer = (part / work.devices for part in (weights, gradients, optimizer))
        held += whole
    return Memory(weights, gradients, optimizer, held)
