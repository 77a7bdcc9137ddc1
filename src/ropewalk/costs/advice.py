"""What would help where memory does not suffice: the settings that need less of it, by the plan's own count."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import ModelShape
from ropewalk.costs.work import Work

FEWER_TOKENS = 4096
"""Tokens of a chunk whose activations take little memory."""


@dataclass(frozen=True)
class Change:
    """A setting that needs less memory."""

    setting: str
    """As on the command line, or in words."""
    work: Work
    """The work under it."""


def changes(work: Work) -> Iterator[Change]:
    """Each single setting under which ``work`` needs less memory, those first that cost least."""
    training = work.stage.startswith("finetune")
    section = "finetune" if training else "search"
    if work.kind == "read":
        if work.micro_batch_size > 1 and work.stage != "evaluate":
            yield Change(f"search.batch_tokens={work.length}", replace(work, micro_batch_size=1))
        elif work.chunk is not None and min(work.chunk, work.length) > FEWER_TOKENS:
            key = "evaluate.chunk_tokens" if work.stage == "evaluate" else "search.batch_tokens"
            yield Change(f"{key}={FEWER_TOKENS}", replace(work, chunk=FEWER_TOKENS))
    elif not work.recompute:
        yield Change(f"{section}.activation_checkpointing=full", replace(work, recompute=True))
    if work.kind != "read" and work.micro_batch_size > 1:
        fewer = largest_divisor(work.micro_batch_size, work.micro_batch_size - 1)
        key = "micro_batch_size" if training else "gradient_batch_size"
        yield Change(f"{section}.{key}={fewer}", replace(work, micro_batch_size=fewer))
    if work.kind == "train":
        if not work.eight_bit:
            yield Change("finetune.optimizer=adamw_8bit", replace(work, eight_bit=True))
        yield Change("finetune.lora.rank=16", replace(work, kind="adapt", rank=16))
    if work.kind != "read" and work.recompute and not work.offload:
        yield Change(f"{section}.activation_checkpointing=offload", replace(work, offload=True))
    if training:
        if work.devices > 1 and not work.sharded:
            yield Change("parallel.strategy=fsdp", replace(work, sharded=True))
        yield Change(f"a length of {work.length // 2}", replace(work, length=work.length // 2))
    if work.dtype == "float32":
        yield Change("model.dtype=bfloat16", replace(work, dtype="bfloat16"))


def savings(work: Work, shape: ModelShape, table: ActivationTable) -> Iterator[tuple[str, float]]:
    """The settings of `changes` that save memory, with the bytes of a device that each saves by itself."""
    before = needed(work, shape, table).total
    for change in changes(work):
        saved = before - needed(change.work, shape, table).total
        if saved > 0:
            yield change.setting, saved


def largest_divisor(count: int, limit: int) -> int:
    """The largest divisor of ``count`` that is at most ``limit``."""
    return max(number for number in range(1, count + 1) if count % number == 0 and number <= limit)
