"""LoRA by peft: adapters are part of the model while it trains, and merged into its weights afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from ropewalk.config import LoraConfig
from ropewalk.models.reasons import reason


@contextmanager
def adapters(model: PreTrainedModel, config: LoraConfig) -> Iterator[None]:
    """Train adapters, and embeddings and norms where asked for, instead of the weights; they are merged on exit.

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
    beside = [part for part in model.modules() if config.norms and type(part).__name__.endswith("Norm")]
    if config.embeddings:
        beside.append(model.get_input_embeddings())
    for module in beside:
        module.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    for parameter, flag in zip(parameters, required_grad, strict=True):
        parameter.requires_grad_(flag)
