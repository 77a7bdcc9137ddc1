"""Training: learning rate, batch, steps and data types by the size of the model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ropewalk.config import Config
from ropewalk.defaults.facts import Facts
from ropewalk.defaults.known import Default, Known, Rule


@dataclass(frozen=True)
class SizeClass:
    """How models of up to ``parameters`` parameters are trained at longer lengths."""

    parameters: float
    learning_rate: float
    batch_tokens: int
    steps: tuple[int, int]
    """Number of optimizer steps at half the target and at the whole of it."""
    source: str


SIZE_CLASSES = (
    SizeClass(1e7, 1e-3, 16_384, (80, 160), "the demo's model"),
    SizeClass(1e9, 1e-4, 262_144, (200, 200), "between the demo's model and those of 1 B parameters and more"),
    SizeClass(4e9, 4e-5, 1_048_576, (300, 300), "between models of 135 M and those of 7 B parameters"),
    SizeClass(math.inf, 2e-5, 4_194_304, (400, 600), "LongRoPE and YaRN on LLaMA-2-7B"),
)
"""LongRoPE trains LLaMA-2-7B at 2e-5 for 400 steps of 32 rows of 128k and 600 of 256k (arXiv 2402.13753, appendix A),
YaRN at 2e-5 for 400 steps of 64 rows of 64k (arXiv 2309.00071, section 4.1), LongRoPE2 Phi-3-mini and LLaMA-3-8B at
2e-5 (arXiv 2502.20082), and ProLong an 8B model at 1e-5 with 4 M tokens a step (arXiv 2410.02660, table 9). Below 4 B
parameters nothing is published; the values lie between those and the demo's."""
_SHORT_SHARE = 0.25
"""Share of short rows where windows are mixed, as in the measurements of docs/fine-tuning.md."""
_LORA = 10
"""How much higher the learning rate of adapters is: 2e-4 for 2e-5 (LongLoRA, arXiv 2309.12307)."""
_TINY = SIZE_CLASSES[0].parameters


def size_class(parameters: int) -> SizeClass:
    return next(size for size in SIZE_CLASSES if parameters <= size.parameters)


def _size(known: Known) -> tuple[SizeClass, str]:
    """The class, and the reason for it."""
    size = size_class(known.facts.parameters)
    return size, f"{known.facts.size}: {size.source}"


def learning_rate(known: Known) -> Default:
    size, reason = _size(known)
    if known["finetune.lora.rank"]:
        return Default(_LORA * size.learning_rate, f"{reason}, times {_LORA} for adapters")
    return Default(size.learning_rate, reason)


def _batch_size(stage: str) -> Rule:
    def rule(known: Known) -> Default:
        size, reason = _size(known)
        parallel = known.config.parallel
        groups = max(1, parallel.devices * parallel.nodes // parallel.context)
        rows = max(1, round(size.batch_tokens / known[f"finetune.{stage}.length"]))
        return Default(math.ceil(rows / groups) * groups, f"about {size.batch_tokens:,} tokens; {reason}")

    return rule


def first_steps(known: Known) -> Default:
    size, reason = _size(known)
    if _is_one_part(known):
        return Default(sum(size.steps), f"both parts at once; {reason}")
    return Default(size.steps[0], reason)


def second_steps(known: Known) -> Default:
    size, reason = _size(known)
    if _is_one_part(known):
        return Default(0, "finetune.first reads the same length")
    return Default(size.steps[1], reason)


def _is_one_part(known: Known) -> bool:
    return bool(known["finetune.first.length"] == known["finetune.second.length"])


def short_share(known: Known) -> Default:
    """Mixed windows, where training can have them (docs/fine-tuning.md has the figures)."""
    parallel = known.config.parallel
    if known["search.query_scales"] != "none":
        return Default(0.0, "mixed windows gain nothing beside query scales")
    if not known.facts.keeps_documents_apart:
        return Default(0.0, "the model cannot keep the documents of a row apart")
    if parallel.context > 1 or parallel.attention == "ring":
        return Default(0.0, "devices share rows, and the ring that they pass keys around takes no masks")
    if any(known[f"finetune.{part}.length"] % known.facts.window for part in ("first", "second")):
        return Default(0.0, "the training lengths are no multiples of the window")
    return Default(_SHORT_SHARE, "mixed windows keep more of what the model read in its window (LongRoPE2)")


def control(known: Known) -> Default:
    """A control costs as much as the training itself."""
    if known.facts.parameters <= _TINY:
        return Default(True, "a model this small is trained twice in minutes")
    return Default(False, "a control costs as much as the training")


def optimizer(known: Known) -> Default:
    if known.on_gpu:
        return Default("adamw_fused", "a GPU")
    return Default("adamw", "no GPU")


def dtype(known: Known) -> Default:
    """bfloat16 where the device is fast in it; weights are trained in float32, since steps of 2e-5 are lost in it."""
    if known.on_gpu:
        return Default("bfloat16", "a GPU reads in bfloat16 many times as fast; weights are trained in float32")
    try:
        is_small = known.facts.parameters <= _TINY
    except (FileNotFoundError, ValueError):
        # The error is reported where the model is read.
        is_small = True
    if is_small:
        return Default("float32", "a small model on a processor")
    # Late, because torch takes seconds to import.
    from ropewalk.models.precision import is_bfloat16_fast

    if is_bfloat16_fast():
        return Default(
            "bfloat16", "this processor reads in bfloat16 several times as fast; weights are trained in float32"
        )
    return Default("float32", "this processor is slow in bfloat16")


RULES: dict[str, Rule] = {
    "model.dtype": dtype,
    "finetune.first.learning_rate": learning_rate,
    "finetune.second.learning_rate": learning_rate,
    "finetune.first.batch_size": _batch_size("first"),
    "finetune.second.batch_size": _batch_size("second"),
    "finetune.first.steps": first_steps,
    "finetune.second.steps": second_steps,
    "finetune.short_share": short_share,
    "finetune.control": control,
    "finetune.optimizer": optimizer,
}


def unusual(config: Config, facts: Facts) -> Iterator[str]:
    """Warnings of values that are known to spoil a model of this size, each with the key and the usual range."""
    if config.extension.way == "untrained":
        return
    size = size_class(facts.parameters)
    scale, what = (_LORA, "adapters of models") if config.finetune.lora.rank else (1, "models")
    lowest, highest = scale * size.learning_rate / 40, scale * size.learning_rate * 3
    about = f"{what} of {facts.size}"
    for key, step in config.finetune.schedule.items():
        if not step.steps:
            continue
        if not lowest <= step.learning_rate <= highest:
            yield f"{key}.learning_rate={step.learning_rate:g} is unusual: {about} take {lowest:g} to {highest:g}"
        tokens = step.batch_size * step.length
        if tokens * 16 < size.batch_tokens:
            yield (
                f"{key}.batch_size={step.batch_size} makes steps of {tokens:,} tokens: {about} take "
                f"{size.batch_tokens // 16:,} or more, {size.batch_tokens:,} as a rule"
            )
