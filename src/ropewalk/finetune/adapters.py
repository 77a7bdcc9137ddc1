"""LoRA by peft: adapters are part of the model while it trains, and merged into its weights afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.config import LoraConfig
from ropewalk.models.reasons import reason


@contextmanager
def adapters(model: PreTrainedModel, config: LoraConfig) -> Iterator[None]:
    """Train adapters, and embeddings and norms where asked for, instead of the weights; they are merged on exit.

    What is trained is in float32 or larger, and the embeddings and norms give results of the dtype that they had.

    If the body raises, nothing is merged, and the model must not be used any more.

    Raises:
        ValueError: peft is not installed, or the model has no such layers.
    """
    if not config.rank:
        yield
        return
    try:
        import peft
    except ImportError:
        raise ValueError("finetune.lora.rank needs the package peft; pip install 'ropewalk[lora]'") from None
    parameters = list(model.parameters())
    required_grad = [parameter.requires_grad for parameter in parameters]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        wrapped: Any = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ValueError(f"finetune.lora.targets: {reason(error)}") from None
    also_trained = [part for part in model.modules() if config.norms and type(part).__name__.endswith("Norm")]
    if config.embeddings:
        also_trained.append(model.get_input_embeddings())
    hooks = []
    for module in also_trained:
        dtype = next(module.parameters()).dtype
        module.requires_grad_(True).to(torch.promote_types(dtype, torch.float32))
        hooks.append((module, dtype, module.register_forward_hook(_in(dtype))))
    yield
    wrapped.merge_and_unload()
    for module, dtype, hook in hooks:
        hook.remove()
        module.to(dtype)
    for parameter, flag in zip(parameters, required_grad, strict=True):
        parameter.requires_grad_(flag)


def _in(dtype: torch.dtype) -> Callable[[Any, Any, Tensor], Tensor]:
    """A hook that gives the result of a module in ``dtype``."""
    return lambda _, inputs, result: result.to(dtype)
