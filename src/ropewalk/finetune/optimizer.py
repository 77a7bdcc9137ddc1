"""The optimizers that `finetune.optimizer` names."""

from typing import Any

import torch
from torch.optim import AdamW, Optimizer

_BETAS = (0.9, 0.95)


def make_optimizer(name: str, groups: list[dict[str, Any]], *, weight_decay: float) -> Optimizer:
    """AdamW over parameter groups, each with its own lr.

    Raises:
        ValueError: adamw_8bit without bitsandbytes.
    """
    if name != "adamw_8bit":
        fused = True if name == "adamw_fused" else None
        adamw = AdamW(groups, betas=_BETAS, weight_decay=weight_decay, fused=fused)
        # A fused one could undo a scaling of float16's gradients itself, for which Lightning refuses to clip them.
        adamw._step_supports_amp_scaling = False
        return adamw
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(
            "finetune.optimizer=adamw_8bit needs the package bitsandbytes; pip install 'ropewalk[low-memory]'"
        ) from None
    optimizer: Optimizer = AdamW8bit(groups, betas=_BETAS, weight_decay=weight_decay)
    return optimizer


def trained(parameters: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
