"""LoRA through peft: adapters inside the model while it trains, merged into plain weights at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropewalk.config import LoraConfig


@contextmanager
def adapters(model: PreTrainedModel, config: LoraConfig) -> Iterator[None]:
    """Train adapters (and the embeddings and norms, where wanted) in place of the weights; merged on the way out.

    Where the body of the with statement raises, nothing is merged, so that the model is not fit for use.

    Raises:
        ValueError: peft is not there, or the model has no such layers.
    """
    if not config.rank:
        yield
        return
    try:
        import peft
    except ImportError:
        raise ValueError("finetune.lora.rank needs the package peft; pip install 'ropewalk[lora]'") from None
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    parameters = list(model.parameters())
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
        raise ValueError(f"finetune.lora.targets: {str(error).splitlines()[0]}") from None
    for module in _also_trained(model, config):
        module.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    for parameter, flag in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(flag)


def _also_trained(model: PreTrainedModel, config: LoraConfig) -> Iterator[nn.Module]:
    if config.embeddings:
        yield model.get_input_embeddings()
    if config.norms:
        yield from (module for module in model.modules() if type(module).__name__.endswith("Norm"))
