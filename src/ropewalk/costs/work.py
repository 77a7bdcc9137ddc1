"""FLOPs, time and memory of a piece of work, as formulas of a model's shape."""

from dataclasses import dataclass
from typing import Literal

from ropewalk.costs.shape import ModelShape
from ropewalk.models.activation_checkpointing import TILE

Kind = Literal["read", "learn", "adapt", "train"]
"""read: forward passes only. learn: gradients of factors through frozen weights. adapt: gradients of adapters beside
frozen weights. train: gradients of the weights."""
# Cost of a pass with its backward in forward passes, for linear maps and for attention, whose backward pass takes five
# matrix products where its forward pass takes two.
_LINEAR: dict[Kind, float] = {"read": 1, "learn": 2, "adapt": 2, "train": 3}
_ATTENTION: dict[Kind, float] = {"read": 1, "learn": 3.5, "adapt": 3.5, "train": 3.5}
_BYTES = {"float64": 8, "float32": 4}


@dataclass(frozen=True)
class Work:
    """``rows`` rows of ``length`` tokens through the model, ``micro_batch_size`` of them at once on a device."""

    stage: str
    what: str
    kind: Kind
    length: int
    rows: int
    micro_batch_size: int
    batch_size: int
    """Rows between two updates of the weights; micro_batch_size if there are no updates."""
    devices: int = 1
    """Number of devices that work on it, each on rows or on slices of rows."""
    context: int = 1
    """Number of devices that share a row, each of which holds a slice of it."""
    ring: bool = False
    """Whether these devices pass their keys and values around, instead of gathering those of the whole row."""
    sharded: bool = False
    """Whether weights, gradients and optimizer states are split over all devices (FSDP)."""
    recompute: bool = False
    """Whether the backward pass recomputes the activations of every layer (activation checkpointing)."""
    offload: bool = False
    """Whether the layers' inputs, which they are recomputed from, are kept in the processor's memory, and long rows are
    computed in tiles."""
    eight_bit: bool = False
    """Whether the optimizer keeps its two moments of a weight in a byte each."""
    rank: int = 0
    """Rank of the adapters that are trained in place of the weights."""
    embeddings: bool = False
    """Whether the input embeddings are trained beside the adapters."""
    chunk: int | None = None
    """Largest number of tokens in a forward pass; longer rows are read in chunks, layer by layer. By default rows are
    read whole."""
    generates: bool = False
    """Whether tokens are generated after each row, for which the KV cache of all layers is kept."""
    models: int = 1
    """Number of models of this shape that a process has loaded at once."""
    processes: int = 1
    """Number of processes that share a device, each with models of its own."""
    dtype: str = "float32"
    """dtype of the weights."""
    mixed: bool = False
    """Whether activations are bf16 over float32 weights."""

    @property
    def computes_in(self) -> str:
        """dtype of the matrix products."""
        return "bfloat16" if self.mixed else self.dtype

    @property
    def is_chunked(self) -> bool:
        """Whether keys and values are kept from chunk to chunk, of one layer or, for generating, of all layers."""
        return self.chunk is not None and (self.length > self.chunk or self.generates)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a weight."""
        return _BYTES.get(self.dtype, 2)

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def tokens_per_device(self) -> int:
        """Tokens whose activations a device holds at once; for a row that is read in chunks, those of the whole row."""
        return self.micro_batch_size * -(-self.length // self.context)


@dataclass(frozen=True)
class Flops:
    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def forward_flops(shape: ModelShape, *, length: int) -> Flops:
    """FLOPs of a forward pass over one row; a multiply-add counts as two, and causal attention as half of full."""
    linear = 2.0 * length * (shape.matrices + shape.hidden * shape.vocab)
    # Pairs of a token and one that it attends to.
    pairs = shape.full_layers * length**2 / 2
    window = min(shape.sliding_window, length)
    pairs += shape.windowed_layers * (length * window - window**2 / 2)
    return Flops(linear, 2.0 * shape.heads * (shape.head_dim + shape.value_dim) * pairs)


def flops_of(work: Work, shape: ModelShape) -> Flops:
    """FLOPs of all rows, including what is recomputed."""
    forward = forward_flops(shape, length=work.length)
    recomputes = work.recompute and work.kind != "read"
    # Feed-forward modules, which most of a layer's linear maps are in, are also recomputed tile by tile.
    recomputes_tiles = recomputes and work.offload and work.tokens_per_device > TILE
    linear = _LINEAR[work.kind] + recomputes + recomputes_tiles
    attention = _ATTENTION[work.kind] + recomputes
    return Flops(work.rows * forward.linear * linear, work.rows * forward.attention * attention)


@dataclass(frozen=True)
class Rate:
    """FLOPs a second that a device achieves in linear maps and in attention."""

    linear: float
    attention: float


def seconds(flops: Flops, rate: Rate, *, devices: int = 1) -> float:
    return (flops.linear / rate.linear + flops.attention / rate.attention) / devices


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Also KV caches, and the layers that FSDP has gathered."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_of(work: Work, shape: ModelShape, activations: float) -> Memory:
    """Peak memory of one device; ``activations`` are the bytes of a pass over `Work.tokens_per_device` tokens.

    AdamW keeps two moments per weight, and split layers are gathered one by one.
    """
    weights = float(shape.parameters * work.dtype_bytes)
    gradients = optimizer = 0.0
    if work.kind == "train":
        gradients, optimizer = weights, 2.0 * (shape.parameters if work.eight_bit else weights)
    elif work.kind == "adapt":
        # What is trained is float32 where the weights beside it are smaller.
        size = max(4, work.dtype_bytes)
        adapters, embeddings = work.rank * shape.map_sizes, work.embeddings * shape.hidden * shape.vocab
        gradients = float(size * (adapters + embeddings))
        optimizer = 2.0 * (adapters + embeddings if work.eight_bit else gradients)
        weights += gradients - work.dtype_bytes * embeddings
    held = activations
    activation_bytes = 2 if work.mixed else work.dtype_bytes
    if work.context > 1:
        keys_and_values = shape.kv_heads * (shape.head_dim + shape.value_dim) * work.micro_batch_size * work.length
        if work.ring:
            # Those of two devices at a time, and float32 gradients of both.
            held += 2 * keys_and_values / work.context * (activation_bytes + 4)
        else:
            # Those of the whole row in each layer, kept for the backward pass, and their gradients in one layer.
            held += keys_and_values * activation_bytes * (2 if work.recompute else shape.layers + 1)
    if work.sharded:
        whole = 2 * shape.layer_parameters + shape.outside_parameters
        weights, gradients, optimizer = (part / work.devices for part in (weights, gradients, optimizer))
        held += whole * activation_bytes
    parts = weights * work.models, gradients, optimizer, held
    return Memory(*(part * work.processes for part in parts))
