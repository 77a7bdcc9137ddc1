"""What would help where memory does not suffice: settings that need less, by the plan's own count or by the stage."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ropewalk.config import Config, SearchConfig
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


def search_advice(config: SearchConfig) -> str:
    """The settings to change where a search runs out of memory as it reads."""
    return (
        f"lower search.batch_tokens, found {config.batch_tokens} (a pass holds one document at least), or "
        f"search.workers, found {config.workers}, or take model.dtype=bfloat16"
    )


def stage_advice(stage: str, config: Config) -> str:
    """The settings to change where ``stage`` runs out of memory and nothing closer to the place has said which."""
    if stage in ("search_first", "search_second", "recover"):
        return search_advice(config.search)
    if stage.startswith("finetune"):
        return "take adapters with finetune.lora.rank=16, or split the weights over several devices with parallel=fsdp"
    if stage == "doctor":
        return f"lower doctor.length, found {config.doctor.length or 'none, which is the window after the scaling'}"
    if stage == "walker":
        return f"lower walker.batch_size, found {config.walker.batch_size}"
    half = "take model.dtype=bfloat16" if config.model.dtype == "float32" else "take a smaller model"
    if stage in ("evaluate", "export"):
        return f"lower evaluate.chunk_tokens, found {config.evaluate.chunk_tokens}, or {half}"
    return half if stage == "base" else "end other programs, or take a machine with more memory"


def largest_divisor(count: int, limit: int) -> int:
    """The largest divisor of ``count`` that is at most ``limit``."""
    return max(number for number in range(1, count + 1) if count % number == 0 and number <= limit)
