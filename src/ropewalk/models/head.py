"""The logits of hidden states as the model's class computes them: its output matrix and whatever comes around it.

Some classes divide, multiply or cap their logits in ``forward`` (Granite, Cohere, Gemma-2), so no single module is the
whole head. Therefore the class's own ``forward`` is run, with given hidden states in place of the base model's output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ropewalk.rope.windows import layer_types

RECURRENT = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
"""transformers' layer types with a recurrent state, which is passed from token to token."""

_ACROSS_DOCUMENTS = {"afmoe", "blt", "deepseek_v4", "gpt_oss"}
"""Model types that build their masks without positions, or that merge tokens of several documents."""


def keeps_documents_apart(config: Any) -> bool:
    """Whether attention can be kept within each document of a row, as far as a model's config says."""
    return config.model_type not in _ACROSS_DOCUMENTS and RECURRENT.isdisjoint(layer_types(config))


class _GivenOutput(BaseModelOutput):
    """Hidden states as the only output of a base model; any other that a class asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenStates:
    """Stands in for a base model: returns given hidden states, and has the attributes of that model."""

    def __init__(self, base: nn.Module, states: Tensor) -> None:
        self._base, self._states = base, states

    def __call__(self, *args: Any, **kwargs: Any) -> _GivenOutput:
        return _GivenOutput(last_hidden_state=self._states)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._base, name)
        # Some classes call a part of their base model, such as its decoder.
        return self if isinstance(value, PreTrainedModel) else value


def base_model(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model that gives the hidden states which its head reads.

    Raises:
        ValueError: the model's class has none.
    """
    if model.base_model is not model:
        return model.base_model
    # Llama-4's base_model_prefix names a module that the class does not have.
    for module in model.children():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"{type(model).__name__} has no base model, so its hidden states cannot be read on their own")


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, found by the class names in its ``_no_split_modules``; empty where it has none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def whole_states(model: PreTrainedModel, input_ids: Tensor, **options: Tensor) -> Tensor:
    """Hidden states (batch, length, hidden) that the head reads, of whole rows (batch, length)."""
    states: Tensor = base_model(model)(input_ids=input_ids, use_cache=False, **options).last_hidden_state
    return states


def are_same_states(states: Tensor, expected: Tensor) -> bool:
    """Whether hidden states (batch, length, hidden) differ by no more than rounding in most tokens.

    Not in all of them, since rounding may send a token to other experts.
    """
    errors = (states - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return bool(errors.median() < (1e-3 if states.dtype.itemsize > 2 else 0.1))


def spread_ids(model: PreTrainedModel, length: int) -> Tensor:
    """A row (length,) of token ids that are spread evenly over the vocabulary, for trying out a model."""
    embeddings: Any = model.get_input_embeddings()
    return torch.linspace(0, len(embeddings.weight) - 1, length + 2, device=embeddings.weight.device)[1:-1].long()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, without dropout, within the block."""
    is_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(is_training)


T = TypeVar("T")


class TriedOnce(Generic[T]):
    """Decorator of functions that try something out with a model; the answer for each model is cached.

    The function runs in evaluation mode and without gradients, once for each attention implementation of a model.
    """

    def __init__(self, function: Callable[[PreTrainedModel], T]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._answers: WeakKeyDictionary[Any, dict[str, T]] = WeakKeyDictionary()

    def __call__(self, model: PreTrainedModel) -> T:
        answers = self._answers.setdefault(model, {})
        attention: str = model.config._attn_implementation
        if attention not in answers:
            with evaluating(model), torch.no_grad():
                answers[attention] = self._function(model)
        return answers[attention]

    def take_as_known(self, model: PreTrainedModel, answer: T) -> None:
        """Set the ``answer`` for a ``model`` without weights, with which nothing can be tried out."""
        self._answers.setdefault(model, {})[model.config._attn_implementation] = answer


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (batch, length, vocabulary) of hidden states (batch, length, hidden), in the dtype that the class gives.

    Args:
        states: what the base model returns as its last hidden state.
    """
    base = base_model(model)
    name = next(name for name, module in model.named_children() if module is base)
    # The same weights in a second module, since other threads and hooks may use the first one.
    twin: Any = object.__new__(type(model))
    twin.__dict__ = {**model.__dict__, "_modules": {**model._modules, name: _GivenStates(base, states)}}
    ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    logits: Tensor = type(model).forward(twin, input_ids=ids, use_cache=False).logits
    return logits


def plain_output(model: PreTrainedModel) -> nn.Linear | None:
    """The output matrix, where logits are its product with the hidden states and nothing else; None for other heads.

    The class's ``forward`` is traced on a row without tokens, so the weights may be of any kind, even on meta.
    """
    output = model.get_output_embeddings()
    if type(output) is not nn.Linear:
        return None
    calls: list[tuple[Tensor, Tensor]] = []
    handle = output.register_forward_hook(lambda _, inputs, result: calls.append((inputs[0], result)))
    try:
        # Inference tensors have no version counter, which shows changes in place.
        with torch.inference_mode(False), torch.no_grad():
            states = output.weight.new_empty(1, 0, output.in_features)
            logits = logits_of(model, states)
    finally:
        handle.remove()
    if len(calls) != 1:
        return None
    (given, result), unchanged = calls[0], states._version
    is_states = given is states or (given._base is states and given.shape == states.shape)
    return output if is_states and result is logits and logits._version == unchanged == 0 else None
