"""What to do when memory does not suffice: three settings, with what each would save here."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.finetune.optimizer import OPTIMIZER_BYTES

_KEPT_PER_LAYER = 34
"""Values of the hidden size that a layer keeps for the backward pass, in two bytes each (arXiv 2205.05198, eq. 1)."""


@contextmanager
def explained(
    model: PreTrainedModel, step: FinetuneStepConfig, config: FinetuneConfig, *, rows_at_once: int
) -> Iterator[None]:
    """Turn an allocation that failed into a MemoryError of one line that names three settings that would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        advice = "; ".join(savings(model, step, config, rows_at_once=rows_at_once)[:3])
        raise MemoryError(
            f"{rows_at_once} rows of {step.length} tokens do not fit into memory; what would help: {advice}"
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in text
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def savings(
    model: PreTrainedModel, step: FinetuneStepConfig, config: FinetuneConfig, *, rows_at_once: int
) -> list[str]:
    """Settings that need less memory than these, each with about how much, those that cost least first."""
    text = model.config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    inputs = rows_at_once * step.length * hidden * layers * 2
    kept = inputs * _KEPT_PER_LAYER // 2
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    now = kept if config.activations == "keep" else inputs
    found = []
    if config.activations == "keep":
        found.append(f"finetune.activations=recompute (about {_mib(kept - inputs)} less)")
    if rows_at_once > 1:
        half = rows_at_once // 2
        found.append(f"finetune.rows_at_once={half} (about {_mib(now * (rows_at_once - half) // rows_at_once)} less)")
    if config.optimizer != "adamw_8bit":
        saved = trained * (OPTIMIZER_BYTES[config.optimizer] - OPTIMIZER_BYTES["adamw_8bit"])
        found.append(f"finetune.optimizer=adamw_8bit ({_mib(saved)} less)")
    if not config.lora.rank:
        # Gradients and both moments of all but a hundredth of the weights.
        found.append(f"finetune.lora.rank=16 (about {_mib(trained * (OPTIMIZER_BYTES[config.optimizer] + 4))} less)")
    if config.activations == "recompute":
        found.append(f"finetune.activations=offload (about {_mib(inputs)} less on the device)")
    shorter = step.length // 2
    found.append(f"a length of {shorter} (about {_mib(now // 2)} less)")
    found.append("model.dtype=bfloat16 (half of what the weights take)")
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
