"""Reading long inputs layer by layer, in the memory of their hidden states and of one layer's keys and values.

Losses need no KV cache of all layers: the whole input goes through the first layer, chunk by chunk, then through the
second, and so on. Each pass of a chunk through a layer is the model's own forward pass, in which the other layers
return their input, so that masks, rotary tables and whatever a class does around its layers stay as they are. A short
row shows whether a model can be read in this way; KV sharing between layers, for example, rules it out.
"""

import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import psutil
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ropewalk.models.head import TriedOnce, are_same_states, spread_ids, whole_states
from ropewalk.models.prefill import FillingLayer, Reading, chunks, continued_states, kv_cache, reading

log = logging.getLogger(__name__)

_FREE_SHARE = 0.5
"""Share of the free memory that hidden states may take; the layers need the rest."""

_INPUT = "hidden_states"
"""The name that transformers' layers give to their first argument."""


def long_states(model: PreTrainedModel, ids: Tensor, *, chunk: int) -> Iterator[Tensor]:
    """Hidden states that the head reads of ``ids`` (batch, length), ``chunk`` tokens at a time, in order.

    Layer by layer where the model allows it, otherwise with a KV cache of all layers or at once.
    """
    if ids.shape[1] > chunk and is_layerwise(model):
        yield from layerwise_states(model, ids, chunk=chunk)
    else:
        yield from chunks(model, ids, kv_cache(model, ids.shape[1]), chunk=chunk)


@TriedOnce
def is_layerwise(model: PreTrainedModel) -> bool:
    """Whether ``model`` can be read layer by layer; the first call tries it on a row of 13 tokens."""
    if reading(model) is Reading.WHOLE:
        return False
    ids = spread_ids(model, 13)[None]
    expected = whole_states(model, ids)
    try:
        return are_same_states(torch.cat(list(layerwise_states(model, ids, chunk=8)), dim=1), expected)
    except Exception as error:  # A class may fail in any way where its layers do not see each other.
        log.debug("%s: reading layer by layer is not possible: %s", type(model).__name__, error)
        return False


class _ReadLength(FillingLayer):
    """A cache layer that holds nothing but the number of tokens."""

    def __init__(self) -> None:
        super().__init__(0)
        self.tokens = 0

    def get_seq_length(self) -> int:
        return self.tokens


@dataclass
class _Layers:
    """The layers of a model, in order."""

    modules: Sequence[nn.Module]
    tuple_size: int = 0
    """Entries of the tuples that layers return, hidden states first; 0 where these alone are returned."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Raises ValueError where the layers cannot be told from the model's other parts."""
        count = model.config.get_text_config().num_hidden_layers
        for part in model.get_decoder().modules():
            if isinstance(part, nn.ModuleList) and len(part) == count:
                return cls(list(part))
        raise ValueError(f"{type(model).__name__} has no list of {count} layers")

    @contextmanager
    def only(self, number: int, given: Tensor | None) -> Iterator[list[Tensor]]:
        """Have a forward pass go through layer ``number`` alone, while the other layers return their input.

        Yields a list to which the layer's hidden states are added.

        Args:
            given: the layer's input; by default that of the first layer.
        """
        returned: list[Tensor] = []
        forward = self.modules[number].forward

        def through(*args: Any, **kwargs: Any) -> Any:
            if given is not None:
                args, kwargs = (given, *args[1:]), {name: value for name, value in kwargs.items() if name != _INPUT}
            output = forward(*args, **kwargs)
            self.tuple_size = len(output) if isinstance(output, tuple) else 0
            returned.append(output[0] if self.tuple_size else output)
            return output

        def past(*args: Any, **kwargs: Any) -> Any:
            states = args[0] if args else kwargs[_INPUT]
            return (states, *[None] * (self.tuple_size - 1)) if self.tuple_size else states

        for place, layer in enumerate(self.modules):
            layer.forward = through if place == number else past
        try:
            yield returned
        finally:
            for layer in self.modules:
                del layer.forward


def layerwise_states(
    model: PreTrainedModel, ids: Tensor, *, chunk: int, endings: Sequence[Tensor] = (), on_device: bool = False
) -> Iterator[Tensor]:
    """Hidden states that the head reads of ``ids`` (batch, length), ``chunk`` tokens at a time, in order.

    Args:
        endings: token ids (batch, new) that each continue ``ids``; their states follow, in order.
        on_device: keep hidden states on the device, however much of its memory they take.

    Raises:
        ValueError: no list of modules of the model has as many entries as it has layers.
        MemoryError: neither memory nor the disk for temporary files has room for the hidden states of the input.
    """
    layers, length = _Layers.of(model), ids.shape[1]
    parts = [(place * chunk, part) for place, part in enumerate(ids.split(chunk, dim=1))]
    parts += [(length, ending) for ending in endings]
    held = _HeldStates([part.shape[1] for _, part in parts], ids.device, "device" if on_device else "")
    capacity = length + max((ending.shape[1] for ending in endings), default=0)
    way = reading(model)
    for number in range(len(layers.modules)):
        cache = kv_cache(model, capacity)
        other_layers, layer = _keep_only(cache, number), cache.layers[number]
        for place, (start, part) in enumerate(parts):
            is_ending = place >= len(parts) - len(endings)
            # A layer that drops old tokens cannot be cut back.
            cache_of_part = copy.deepcopy(cache) if is_ending and not isinstance(layer, FillingLayer) else cache
            with layers.only(number, held.get(place)) as returned:
                states = continued_states(model, part, cache_of_part, way, start=start)
            if not is_ending:
                other_layers.tokens += part.shape[1]
            elif isinstance(layer, FillingLayer):
                layer.crop(-part.shape[1])
            if number + 1 == len(layers.modules):
                yield states
            else:
                held.put(place, returned.pop())


def _keep_only(cache: Cache, number: int) -> _ReadLength:
    """Let layer ``number`` of ``cache`` stand in for all other layers, whose masks nothing reads.

    A layer without keys does not count its tokens. The returned counter then stands in for the others and counts them.
    """
    layer, counter = cache.layers[number], _ReadLength()
    counts = isinstance(layer, CacheLayerMixin)
    cache.layers = [layer if counts or place == number else counter for place in range(len(cache.layers))]
    return counter


@dataclass
class _HeldStates:
    """Hidden states of the chunks of an input, between two layers, in one block of memory.

    The block lies on the device where it takes at most half of its free memory, otherwise in the processor's memory,
    and otherwise in a temporary file, which disappears when the process ends, even when it is killed.
    """

    tokens: Sequence[int]
    """Tokens of each chunk of a row."""
    device: torch.device
    place: str = ""
    """"device", "memory" or "disk"; chosen with the first states where it is empty."""
    _block: Tensor | None = None
    _states: list[Tensor] = field(default_factory=list)

    def get(self, number: int) -> Tensor | None:
        """The states of chunk ``number``, None where none have been put yet."""
        return self._states[number].to(self.device) if number < len(self._states) else None

    def put(self, number: int, states: Tensor) -> None:
        if number == len(self._states):
            per_token = states.numel() // self.tokens[number]
            if self._block is None:
                self._block = self._allocate(per_token * sum(self.tokens), states)
            start = per_token * sum(self.tokens[:number])
            self._states.append(self._block[start : start + states.numel()].view(states.shape))
        self._states[number].copy_(states)

    def _allocate(self, size: int, states: Tensor) -> Tensor:
        """A block of ``size`` numbers of the dtype of ``states``."""
        place = self.place or _place_for(size * states.dtype.itemsize, self.device)
        if place == "device":
            return states.new_empty(size)
        if place == "memory":
            is_pinned = self.device.type == "cuda" and _can_be_pinned(size * states.dtype.itemsize)
            return torch.empty(size, dtype=states.dtype, pin_memory=is_pinned)
        with tempfile.NamedTemporaryFile(prefix="ropewalk-states-") as file:
            # Writing to a sparse file would kill the process when the disk is full.
            os.posix_fallocate(file.fileno(), 0, size * states.dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=states.dtype)


def _can_be_pinned(size: int) -> bool:
    """Whether ``size`` bytes of pinned memory fit; torch rounds them up to a power of two."""
    free: float = psutil.virtual_memory().available
    return 1 << (size - 1).bit_length() <= _FREE_SHARE * free


def _place_for(size: int, device: torch.device) -> str:
    """Where hidden states of ``size`` bytes lie: "device", "memory" or "disk"."""
    memory = psutil.virtual_memory().available
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory
    if size <= _FREE_SHARE * free:
        return "device"
    if size <= _FREE_SHARE * memory:
        return "memory"
    folder = tempfile.gettempdir()
    disk = shutil.disk_usage(folder).free
    if size > disk:
        raise MemoryError(
            f"the hidden states of the input take {size / 2**30:.1f} GiB; {memory / 2**30:.1f} GiB of memory are free "
            f"and {disk / 2**30:.1f} GiB in {folder}; set TMPDIR to a folder on a larger disk"
        )
    log.info("hidden states of %.1f GiB lie in %s, since memory has too little left", size / 2**30, folder)
    return "disk"
