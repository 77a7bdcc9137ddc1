"""How much memory an optimizer step needs, and what to do when it does not suffice."""

from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.costs.activations import ActivationTable
from ropewalk.costs.advice import changes, largest_divisor, savings
from ropewalk.costs.shape import shape_of
from ropewalk.costs.work import Work
from ropewalk.models.memory import within_memory

_NUM_SETTINGS = 3
"""Largest number of settings that the message about too little memory names."""


def training_work(
    step: FinetuneStepConfig, config: FinetuneConfig, parallel: ParallelConfig, *, mixed: bool, dtype: str, gpu: bool
) -> Work:
    """One optimizer step, for the formulas of `ropewalk.costs`.

    Args:
        mixed: as in `Work`.
        dtype: that of the weights in training (`FinetuneConfig.weights_dtype`).
        gpu: whether the devices are GPUs, where attention without masks goes around a ring by default.

    Raises:
        ValueError: the step's rows cannot be shared by so many groups of devices.
    """
    devices = parallel.devices * parallel.nodes
    ring_by_default = gpu and not config.short_share and (mixed or dtype != "float32")
    return Work(
        "finetune",
        "",
        "adapt" if config.lora.rank else "train",
        step.length,
        step.batch_size,
        micro_batch_size(step, config, groups=devices // parallel.context),
        step.batch_size,
        devices=devices,
        context=parallel.context,
        ring=parallel.attention == "ring" or (parallel.attention == "auto" and ring_by_default),
        sharded=parallel.strategy == "fsdp",
        recompute=config.activation_checkpointing != "none",
        offload=config.activation_checkpointing == "offload",
        eight_bit=config.optimizer == "adamw_8bit",
        rank=config.lora.rank,
        embeddings=config.lora.embeddings,
        mixed=mixed,
        dtype=dtype,
    )


def micro_batch_size(step: FinetuneStepConfig, config: FinetuneConfig, *, groups: int) -> int:
    """Rows of a group in a forward pass, as a divisor of its rows of a step; raises ValueError without such rows."""
    group_rows, rest = divmod(step.batch_size, groups)
    if rest or not group_rows:
        raise ValueError(
            f"{step.batch_size} rows cannot be shared by {groups} groups of devices; "
            f"finetune's rows must be a multiple of {groups}"
        )
    return largest_divisor(group_rows, max(1, config.micro_batch_size or config.micro_batch_tokens // step.length))


def within_memory_of(work: Work, config: Any) -> AbstractContextManager[None]:
    """Turn a failed allocation into a MemoryError of one line that names up to three settings that would help.

    ``config`` is the model's transformers configuration.
    """

    def advice() -> str:
        try:
            table = ActivationTable(config, gpu=torch.cuda.is_available())
            saved = savings(work, shape_of(config, name=""), table)
            settings = [f"{setting} ({size / 2**20:,.0f} MiB less)" for setting, size in islice(saved, _NUM_SETTINGS)]
        except ValueError:
            # A model whose code comes with its checkpoint cannot be built from its config alone.
            settings = [change.setting for change in islice(changes(work), _NUM_SETTINGS)]
        return (
            f"{work.micro_batch_size} rows of {work.length} tokens do not fit; what would help: {'; '.join(settings)}"
        )

    return within_memory(advice)
