"""The fine-tuning's schedule and options, and the devices that it runs on."""

from itertools import pairwise

from ropewalk.config import Config
from ropewalk.consistency.values import require


def check_finetune(config: Config) -> None:
    finetune, target = config.finetune, config.road.first_target
    schedule = finetune.schedule
    for key, step in schedule.items():
        for name in ("length", "steps", "rows"):
            # A schedule may have nothing to do in its second stage: the first one's model goes on as it is.
            least = 0 if (key, name) == ("finetune.second", "steps") else 1
            value = getattr(step, name)
            require(value >= least, f"{key}.{name} must be at least {least}, found {value}")
        require(step.warmup_steps >= 0, f"{key}.warmup_steps must not be negative, found {step.warmup_steps}")
        require(step.learning_rate > 0, f"{key}.learning_rate must be above 0, found {step.learning_rate}")
        require(
            not (step.subsets and finetune.across_documents),
            f"{key}.subsets does not go with finetune.across_documents, found {step.subsets}; give one of them",
        )
        decays = ("linear", "constant")
        require(step.decay in decays, f"{key}.decay must be one of {', '.join(decays)}, found {step.decay}")
        require(
            step.scaling in ("searched", "none", "pi", "ntk", "yarn") or step.scaling.endswith((".json", ".csv")),
            f"{key}.scaling must be searched, none, pi, ntk, yarn or the path of a .json or .csv, found {step.scaling}",
        )
        searched = config.road.search_first.lengths
        require(
            step.scaling_length is None or step.scaling != "searched" or step.scaling_length in searched,
            f"{key}.scaling_length must be among road.search_first.lengths {searched}, found {step.scaling_length}",
        )
        at_once = finetune.rows_at_once
        require(
            at_once is None or at_once >= step.rows or step.rows % at_once == 0,
            f"finetune.rows_at_once must divide {key}.rows {step.rows}, found {at_once}",
        )
    require(
        finetune.second.scaling_length in (None, target),
        f"finetune.second.scaling_length must be road.first_target {target}, which the later stages take its result "
        f"for, found {finetune.second.scaling_length}",
    )
    for (key, step), (later, following) in pairwise(schedule.items()):
        require(
            step.length <= following.length,
            f"{key}.length must not be above {later}.length, found {step.length}, {following.length}; "
            "a schedule must not shrink",
        )
    longest = finetune.second.length
    require(
        longest <= target,
        f"finetune.second.length must not be above road.first_target, found {longest} and {target}",
    )


def check_parallel(config: Config) -> None:
    parallel, finetune = config.parallel, config.finetune
    count = parallel.devices * parallel.nodes
    require(
        count == 1 or parallel.strategy != "one",
        f"parallel.strategy must be ddp or fsdp for several devices, found one and {count} devices",
    )
    require(
        count % parallel.context == 0,
        f"parallel.context must divide parallel.devices times parallel.nodes, found {parallel.context} and {count}",
    )
    kinds = ("auto", "gathered", "ring")
    require(
        parallel.attention in kinds,
        f"parallel.attention must be one of {', '.join(kinds)}, found {parallel.attention}",
    )
    for key, masks in (
        ("finetune.short_share", finetune.short_share),
        ("model.keep_sliding_window", config.model.keep_sliding_window),
    ):
        require(
            parallel.attention != "ring" or not masks,
            f"{key} needs masks, which parallel.attention=ring does not know, found {masks}; take auto",
        )
    allowed = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-true")
    require(
        parallel.strategy != "fsdp" or finetune.precision in allowed,
        f"finetune.precision must be one of {', '.join(allowed)} under fsdp, found {finetune.precision}",
    )
    lora, dtype = finetune.lora, config.model.dtype
    # Split weights that are trained together must be of one dtype, and adapters are float32 over a half one.
    require(
        parallel.strategy != "fsdp"
        or not (lora.rank and lora.norms)
        or dtype == "float32"
        or finetune.precision in ("bf16-true", "16-true"),
        f"finetune.lora.norms over model.dtype={dtype} needs finetune.precision=bf16-true under fsdp, "
        f"found {finetune.precision}",
    )
    groups = count // parallel.context
    for key, step in finetune.schedule.items():
        require(
            step.rows % groups == 0,
            f"{key}.rows must be a multiple of the {groups} groups of devices that read rows of their own "
            f"(parallel.devices times parallel.nodes over parallel.context), found {step.rows}",
        )
        # Twice, since a device holds one slice of a row's first half and one of its second, for even work.
        slices = 2 * parallel.context if parallel.context > 1 else 1
        require(
            step.length % slices == 0,
            f"{key}.length must be a multiple of {slices}, twice parallel.context, found {step.length}",
        )
