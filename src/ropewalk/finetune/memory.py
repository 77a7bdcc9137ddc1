"""How much memory a step needs, and what to do when it does not suffice: three settings, with what each saves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import shape_of
from ropewalk.costs.work import Work

_NAMED = 3


def training_work(
    step: FinetuneStepConfig, config: FinetuneConfig, parallel: ParallelConfig, *, mixed: bool, dtype: str, gpu: bool
) -> Work:
    """One optimizer step, as the plan counts it.

    Args:
        mixed: whether activations are bf16 over float32 weights.
        dtype: of the weights.
        gpu: whether the devices are GPUs, where attention without masks goes around a ring by default.

    Raises:
        ValueError: the step's rows cannot be shared by so many groups of devices.
    """
    devices = parallel.devices * parallel.nodes
    by_default = gpu and not config.short_share and (mixed or dtype != "float32")
    return Work(
        "",
        "",
        # Adapters are a hundredth of the weights, which are read and not trained.
        "learn" if config.lora.rank else "train",
        step.length,
        step.rows,
        rows_at_once(step, config, groups=devices // parallel.context),
        step.rows,
        devices=devices,
        context=parallel.context,
        ring=parallel.attention == "ring" or (parallel.attention == "auto" and by_default),
        sharded=parallel.strategy == "fsdp",
        recompute=config.activations != "keep",
        offload=config.activations == "offload",
        eight_bit=config.optimizer == "adamw_8bit",
        mixed=mixed,
        dtype=dtype,
    )


def rows_at_once(step: FinetuneStepConfig, config: FinetuneConfig, *, groups: int = 1) -> int:
    """The largest divisor of a group's rows of a step that fits.

    Raises:
        ValueError: the step's rows cannot be shared by so many groups of devices.
    """
    own, left = divmod(step.rows, groups)
    if left or not own:
        raise ValueError(
            f"{step.rows} rows cannot be shared by {groups} groups of devices; "
            f"finetune's rows must be a multiple of {groups}"
        )
    return _divisor(own, max(1, config.rows_at_once or config.tokens_at_once // step.length))


def _divisor(count: int, most: int) -> int:
    """The largest divisor of ``count`` that is not above ``most``."""
    return max(number for number in range(1, count + 1) if count % number == 0 and number <= most)


@contextmanager
def explained(work: Work, config: Any) -> Iterator[None]:
    """Turn an allocation that failed into a MemoryError of one line that names three settings that would help.

    Args:
        config: transformers' of the model.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        try:
            named = [f"{setting} ({_mib(less)} less)" for setting, less in islice(savings(work, config), _NAMED)]
        except ValueError:
            # A model whose code is its own, which cannot be built from its config alone.
            named = [setting for setting, _ in islice(_smaller(work), _NAMED)]
        raise MemoryError(
            f"{work.rows_at_once} rows of {work.length} tokens do not fit into memory; "
            f"what would help: {'; '.join(named)}"
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in text
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def savings(work: Work, config: Any) -> Iterator[tuple[str, float]]:
    """(setting, bytes of a device that it saves by the plan's count), those first that cost least.

    Raises:
        ValueError: transformers has no causal model for ``config``.
    """
    shape, table = shape_of(config, name=""), ActivationTable(config)
    now = needed(work, shape, table).total
    for setting, changed in _smaller(work):
        less = now - needed(changed, shape, table).total
        if less > 0:
            yield setting, less


def _smaller(work: Work) -> Iterator[tuple[str, Work]]:
    """Each setting that needs less memory, with the work under it alone."""
    if not work.recompute:
        yield "finetune.activations=recompute", replace(work, recompute=True)
    if work.rows_at_once > 1:
        fewer = _divisor(work.rows_at_once, work.rows_at_once - 1)
        yield f"finetune.rows_at_once={fewer}", replace(work, rows_at_once=fewer)
    if work.kind == "train" and not work.eight_bit:
        yield "finetune.optimizer=adamw_8bit", replace(work, eight_bit=True)
    if work.kind == "train":
        yield "finetune.lora.rank=16", replace(work, kind="learn")
    if work.recompute and not work.offload:
        yield "finetune.activations=offload", replace(work, offload=True)
    if work.devices > 1 and not work.sharded:
        yield "parallel.strategy=fsdp", replace(work, sharded=True)
    yield f"a length of {work.length // 2}", replace(work, length=work.length // 2)
    if work.dtype == "float32":
        yield "model.dtype=bfloat16", replace(work, dtype="bfloat16")


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
