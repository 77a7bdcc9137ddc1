"""Activation memory, by running the real forward and backward pass on tensors that have shapes but no storage."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ropewalk.costs.shape import ModelShape, build, with_layers
from ropewalk.costs.work import Kind, Memory, Work, memory_of
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.rope import RopeScaling, RotaryEmbedding, find_rotary

_MASKLESS = "ropewalk_costs"
# transformers makes a mask whenever a tensor is fake; for one that is real it leaves causal attention to the kernel.
AttentionInterface.register(_MASKLESS, sdpa_attention_forward)
_TOKENS = (2**16, 2**17)
"""Lengths of the two passes that longer ones are extrapolated from."""


class _Live(TorchDispatchMode):
    """Bytes of the tensors that operations made and something still holds, and the most there were.

    Args:
        there: tensors that were there before, views of which take nothing.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)
        return made

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def traced_bytes(config: Any, *, kind: Kind, tokens: int, dtype: str, mixed: bool, recompute: bool) -> int:
    """Most bytes that a pass over one row of ``tokens`` holds beside the weights, and where trained their gradients."""
    with FakeTensorMode():
        model = build(config, dtype=getattr(torch, dtype))
        model.set_attn_implementation(_MASKLESS)
        rotary = _with_scaling(model)
        if recompute and kind != "read":
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        if kind == "train":
            # Each is added to what is there already, which counts elsewhere.
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(_forget)
        else:
            model.requires_grad_(False)
        if kind == "learn":
            rotary.factors.requires_grad_()
        rows = torch.zeros(1, tokens, dtype=torch.long)
        there = (*model.parameters(), *model.buffers(), rows)
        with _Live(there) as live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            if kind == "read":
                with torch.no_grad():
                    token_losses(model, rows)
            else:
                mean_loss(model, rows).backward()
    peak: int = live.peak
    return peak


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _with_scaling(model: Any) -> RotaryEmbedding:
    """Our rotary module in the model's place for it; `extend` compares values, which a fake tensor does not have."""
    name, found = find_rotary(model)
    pairs = len(found.get_buffer("inv_freq"))
    rotary = RotaryEmbedding(torch.ones(pairs), RopeScaling((1.0,) * pairs, 1, 1))
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, rotary)
    return rotary


class ActivationTable:
    """Bytes beside weights, gradients and optimizer states at the fullest moment, each pass traced once.

    Two and three layers are traced, whose difference stands for every further one, and rows up to 131,072 tokens,
    from which on all is linear in them.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._known: dict[tuple[Any, ...], float] = {}

    def __call__(
        self, *, kind: Kind, tokens: int, dtype: str, mixed: bool, recompute: bool, offload: bool = False
    ) -> float:
        """Bytes on the device for ``tokens`` tokens at once."""
        few, many = _TOKENS
        # What the backward pass needs of the other layers lies elsewhere.
        layers = 1 if offload else self._config.num_hidden_layers
        if tokens <= many:
            return self._of_layers(layers, kind, tokens, dtype, mixed, recompute)
        low, high = (self._of_layers(layers, kind, count, dtype, mixed, recompute) for count in _TOKENS)
        return high + (high - low) / (many - few) * (tokens - many)

    def _of_layers(self, layers: int, *key: Any) -> float:
        if layers <= 3:
            return self._traced(layers, *key)
        two, three = self._traced(2, *key), self._traced(3, *key)
        return three + (three - two) * (layers - 3)

    def _traced(self, layers: int, *key: Any) -> float:
        if (layers, *key) not in self._known:
            kind, tokens, dtype, mixed, recompute = key
            model = with_layers(self._config, layers)
            self._known[layers, *key] = traced_bytes(
                model, kind=kind, tokens=tokens, dtype=dtype, mixed=mixed, recompute=recompute
            )
        return self._known[layers, *key]


def needed(work: Work, shape: ModelShape, table: ActivationTable) -> Memory:
    """Memory of one device."""
    activations = table(
        kind=work.kind,
        tokens=work.tokens_per_device,
        dtype=work.dtype,
        mixed=work.mixed,
        recompute=work.recompute,
        offload=work.offload,
    )
    return memory_of(work, shape, activations)
