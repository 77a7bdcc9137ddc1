"""Activation memory, by running the real forward and backward pass on tensors that have shapes but no storage."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.plan.costs import Kind
from ropewalk.plan.shape import build, with_layers
from ropewalk.rope import RopeScaling, RotaryEmbedding, find_rotary

_MASKLESS = "ropewalk_plan"
# transformers makes a mask whenever a tensor is fake; for one that is real it leaves causal attention to the kernel.
AttentionInterface.register(_MASKLESS, sdpa_attention_forward)
_TOKENS = (2**16, 2**17)
"""Lengths of the two passes that longer ones are extrapolated from."""


class _Live(TorchDispatchMode):
    """Bytes of the tensors that operations made and something still holds, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

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
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
        else:
            model.requires_grad_(False)
        if kind == "learn":
            rotary.factors.requires_grad_()
        rows = torch.zeros(1, tokens, dtype=torch.long)
        with _Live() as live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            if kind == "read":
                with torch.no_grad():
                    token_losses(model, rows)
            else:
                mean_loss(model, rows).backward()
    peak: int = live.peak
    return peak


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

    def __call__(self, *, kind: Kind, tokens: int, dtype: str, mixed: bool, recompute: bool) -> float:
        """Bytes for ``tokens`` tokens at once."""
        few, many = _TOKENS
        if tokens <= many:
            return self._traced(kind, tokens, dtype, mixed, recompute)
        low, high = (self._traced(kind, count, dtype, mixed, recompute) for count in _TOKENS)
        return high + (high - low) / (many - few) * (tokens - many)

    def _traced(self, *key: Any) -> float:
        if key not in self._known:
            self._known[key] = self._trace(*key)
        return self._known[key]

    def _trace(self, kind: Kind, tokens: int, dtype: str, mixed: bool, recompute: bool) -> float:
        def bytes_of(layers: int) -> float:
            model = with_layers(self._config, layers)
            return traced_bytes(model, kind=kind, tokens=tokens, dtype=dtype, mixed=mixed, recompute=recompute)

        layers = self._config.num_hidden_layers
        if layers <= 3:
            return bytes_of(layers)
        two, three = bytes_of(2), bytes_of(3)
        extrapolated: float = three + (three - two) * (layers - 3)
        return extrapolated
