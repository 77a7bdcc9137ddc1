"""What the values of one configuration must satisfy, alone and together; each failure names the key."""

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ropewalk.config import Config, SearchTargetConfig, SourceConfig

METHODS = ("none", "pi", "ntk", "dynamic_ntk", "abf", "yarn", "longrope")
"""What evaluate compares; longrope stands for the searched factors."""
SOURCES = ("stdlib", "jsonl", "text", "redpajama_v1", "redpajama_sample", "redpajama_v2")
NEEDLES = ("single", "multi_key", "multi_value", "variable_tracking")
BENCHMARKS = ("arc_challenge", "arc_easy", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k")
SAMPLERS = ("evolution", "paper", "start_tokens", "cmaes", "tpe", "random")
_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

_CHOICES: dict[str, tuple[str, ...]] = {
    "corpus.name": (*SOURCES, "mixture"),
    "model.start": ("checkpoint", "plain"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "search.sampler": SAMPLERS,
    "finetune.precision": _PRECISIONS,
    "finetune.activations": ("keep", "recompute", "offload"),
    "finetune.optimizer": ("adamw", "adamw_fused", "adamw_8bit"),
    "parallel.strategy": ("one", "ddp", "fsdp"),
    "walker.precision": _PRECISIONS,
    "export.short_factor": ("same", "recovered"),
    "export.gguf": ("float16", "float32"),
}
_NOT_NEGATIVE = (
    "seed search.trials search.gradient_steps search.fitness.needles search.race.blocks search.least_gain "
    "search.storage_timeout finetune.bad_steps finetune.positions_every finetune.lora.rank "
    "finetune.weight_decay finetune.answer_weight walker.weight_decay corpus.least_tokens"
).split()
_AT_LEAST_ONE = (
    "corpus.least_long_documents corpus.long_tokens corpus.workers corpus.evaluation_words corpus.evaluation_overlap "
    "corpus.mixture_tokens model.original_length search.gradient_rows search.initial "
    "search.children search.parents search.documents search.batch_tokens search.knots search.budget_tokens "
    "search.patience search.workers search.heartbeat_seconds search.upper_ratio road.search_first.documents "
    "road.search_second.documents road.recover.documents finetune.rows_at_once "
    "finetune.tokens_at_once finetune.checkpoint_every finetune.keep_checkpoints evaluate.documents "
    "evaluate.long_documents evaluate.passkey_depths evaluate.passkey_long_trials evaluate.stride "
    "evaluate.chunk_tokens evaluate.needle_depths evaluate.benchmarks.limit evaluate.retrieval.trials "
    "walker.rows show.original_length show.target_length parallel.devices parallel.nodes parallel.context"
).split()
_POSITIVE = (
    "search.gradient_learning_rate finetune.factors_learning_rate finetune.lora.alpha finetune.peak_tflops "
    "finetune.gradient_clip show.base plan.tflops plan.memory_gib plan.efficiency"
).split()
_SHARES = (
    "corpus.largest_rejected_share corpus.near_duplicates search.mutation_probability finetune.recall_share "
    "finetune.short_share finetune.lora.dropout walker.recall_share"
).split()


def check(config: "Config") -> None:
    """Raise ValueError, naming the key and what is allowed, unless the values agree with each other."""
    for key, allowed in _CHOICES.items():
        _each(config, [key], allowed.__contains__, f"must be one of {', '.join(allowed)}")
    _each(config, _NOT_NEGATIVE, lambda value: value >= 0, "must not be negative")
    _each(config, _AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1")
    _each(config, _POSITIVE, lambda value: value > 0, "must be above 0")
    _each(config, _SHARES, lambda value: 0 <= value <= 1, "must lie between 0 and 1")
    _check_corpus(config)
    _check_road(config)
    _check_search(config)
    _check_finetune(config)
    _check_parallel(config)
    _check_evaluate(config)
    if config.show.table is not None:
        for name in ("original_length", "target_length"):
            value = getattr(config.show, name)
            _require(value is not None, f"show.{name} must be given with show.table, in tokens, found none")
    cycles = config.walker.cycles
    _require(bool(cycles) and min(cycles) >= 1, f"walker.cycles must be numbers of steps from 1, found {cycles}")
    rates = config.walker.learning_rates
    _require(
        len(rates) == len(cycles) and min(rates) > 0,
        f"walker.learning_rates must be a number above 0 for each of the {len(cycles)} walker.cycles, found {rates}",
    )
    if config.model.original_length is not None:
        check_window(config, config.model.original_length)


def check_window(config: "Config", window: int) -> None:
    """Raise ValueError unless the road leads out of a model's window of ``window`` tokens."""
    _require(
        config.road.first_target > window,
        f"road.first_target must be above the model's window, found {config.road.first_target} and {window} tokens",
    )
    for key, step in config.finetune.schedule.items():
        _require(
            config.finetune.short_share == 0 or step.length % window == 0,
            f"{key}.length must be a multiple of the model's window {window} where finetune.short_share is not 0, "
            f"found {step.length}",
        )


def check_measured(config: "Config", window: int) -> None:
    """Raise ValueError unless evaluate measures what a whole road claims: at the window and at the first target."""
    for key in ("evaluate.lengths", "evaluate.base_lengths"):
        lengths = _at(config, key)
        for name, length in (("the model's window", window), ("road.first_target", config.road.first_target)):
            _require(length in lengths, f"{key} must hold {name} {length}, found {lengths}")


def _check_corpus(config: "Config") -> None:
    corpus = config.corpus
    if corpus.name == "mixture":
        _require(bool(corpus.sources), "corpus.sources must name the sources of a mixture, found none")
        for label, source in corpus.sources.items():
            _require(
                source.name in SOURCES,
                f"corpus.sources.{label}.name must be one of {', '.join(SOURCES)}, found {source.name}",
            )
            _require("/" not in label, f"corpus.sources must have labels without /, found {label}")
            _check_source(source, f"corpus.sources.{label}")
    else:
        _check_source(corpus, "corpus")
    weights = corpus.weights
    _require(
        not weights or (min(weights.values()) >= 0 and sum(weights.values()) > 0),
        f"corpus.weights must not be negative, nor all 0, found {weights}",
    )
    _require(corpus.mixture_tokens is None or bool(weights), "corpus.mixture_tokens needs corpus.weights, found none")
    shares = (corpus.search_share, corpus.test_share)
    _require(
        min(shares) > 0 and sum(shares) < 1,
        f"corpus.search_share and corpus.test_share must be above 0 and together below 1, found {shares}",
    )
    longest = max(config.road.second_target, *config.evaluate.lengths)
    _require(
        corpus.long_tokens >= longest,
        f"corpus.long_tokens must not be below the longest length that is read, found {corpus.long_tokens} "
        f"and {longest}",
    )
    second = config.road.search_second.documents or config.search.documents
    for reader, wanted in (("the second search", second), ("evaluate", config.evaluate.long_documents or 1)):
        _require(
            corpus.least_long_documents >= wanted,
            f"corpus.least_long_documents must not be below the {wanted} documents that {reader} reads, "
            f"found {corpus.least_long_documents}",
        )


def _check_source(source: "SourceConfig", key: str) -> None:
    name = source.name
    if name in ("jsonl", "text"):
        _require(bool(source.path), f"{key}.path must name the files to read when {key} is {name}, found none")
    if name.startswith("redpajama"):
        what = "RedPajama's urls.txt" if name == "redpajama_v1" else "the folder that holds the files"
        _require(bool(source.url), f"{key}.url must be the address of {what}, found none")
    for part in ("parallel_downloads", "largest_download_mib", "files"):
        value = getattr(source, part)
        _require(value is None or value >= 1, f"{key}.{part} must be at least 1, found {value}")
    _require(source.download_timeout > 0, f"{key}.download_timeout must be above 0, found {source.download_timeout}")
    for signal, bounds in source.quality.items():
        _require(
            len(bounds) == 2
            and all(bound is None or isinstance(bound, int | float) for bound in bounds)
            and (None in bounds or bounds[0] <= bounds[1]),
            f"{key}.quality.{signal} must be the lowest and the highest value (null for none), found {bounds}",
        )
    if name == "redpajama_v2":
        for part, allowed in (("languages", ("en", "de", "fr", "es", "it")), ("buckets", ("head", "middle", "tail"))):
            values = getattr(source, part)
            _require(
                bool(values) and set(values) <= set(allowed),
                f"{key}.{part} must be some of {', '.join(allowed)}, found {values}",
            )
        _require(bool(source.snapshots), f"{key}.snapshots must name crawls such as 2023-06, found none")
        _require(
            not source.quality or "tail" not in source.buckets,
            f"{key}.quality needs quality signals, which the bucket tail in {key}.buckets does not have",
        )


def _check_road(config: "Config") -> None:
    road = config.road
    _require(
        road.second_target > road.first_target,
        f"road.second_target must be above road.first_target, found {road.second_target} and {road.first_target}",
    )
    for name, target in (("first", road.first_target), ("second", road.second_target)):
        key = f"road.search_{name}.lengths"
        lengths = _at(config, key)
        _rising(key, lengths)
        _require(lengths[-1] == target, f"{key} must end at road.{name}_target {target}, found {lengths}")
    _require(
        road.search_second.lengths[0] > road.first_target,
        f"road.search_second.lengths must lie above road.first_target {road.first_target}, "
        f"found {road.search_second.lengths}",
    )
    _rising("road.recover.lengths", road.recover.lengths)
    _require(
        road.recover.lengths[-1] < road.first_target,
        f"road.recover.lengths must lie below road.first_target {road.first_target}, found {road.recover.lengths}",
    )
    for name in ("search_first", "search_second", "recover"):
        target_config: SearchTargetConfig = getattr(road, name)
        for part in ("trials", "gradient_steps"):
            values = getattr(target_config, part)
            _require(
                values is None or (len(values) == len(target_config.lengths) and min(values) >= 0),
                f"road.{name}.{part} must hold a number from 0 for each of road.{name}.lengths "
                f"{target_config.lengths}, found {values}",
            )


def _check_search(config: "Config") -> None:
    search = config.search
    _require(
        search.parents <= search.initial,
        f"search.parents must not be above search.initial, found {search.parents} and {search.initial}",
    )
    lowest_highest = search.attention_factor
    _require(
        lowest_highest is None or (len(lowest_highest) == 2 and 0 < lowest_highest[0] <= lowest_highest[1]),
        f"search.attention_factor must be the lowest and the highest, found {lowest_highest}",
    )
    for key, lengths in (("fitness.lengths", search.fitness.lengths), ("race.shorter", search.race.shorter)):
        _require(
            all(0 < share <= 1 for share in lengths),
            f"search.{key} must be shares of the target length above 0 and up to 1, found {lengths}",
        )
    _require(
        1.0 in search.fitness.lengths,
        f"search.fitness.lengths must hold 1.0, the target length itself, found {search.fitness.lengths}",
    )
    weights = search.fitness.weights
    _require(
        len(weights) == len(search.fitness.lengths) >= 1 and min(weights) > 0,
        f"search.fitness.weights must hold a positive weight for each of search.fitness.lengths "
        f"{search.fitness.lengths}, found {weights}",
    )
    _require(
        search.storage is None or "://" not in search.storage or urlsplit(search.storage).password is None,
        "search.storage must not hold a password, which would be recorded with the run; put it into PGPASSWORD or "
        "~/.pgpass",
    )
    _require(0 < search.race.p_value < 1, f"search.race.p_value must lie between 0 and 1, found {search.race.p_value}")
    road = config.road
    own = [target.documents for target in (road.search_first, road.search_second, road.recover)]
    pairs = search.race.blocks * min(documents or search.documents for documents in own)
    _require(
        search.race.blocks == 0 or pairs >= 32,
        "search.race.blocks times the documents of each search must be at least 32, or the test cannot fire early, "
        f"found {pairs}",
    )


def _check_finetune(config: "Config") -> None:
    finetune, target = config.finetune, config.road.first_target
    schedule = finetune.schedule
    for key, step in schedule.items():
        for name in ("length", "steps", "rows"):
            # A schedule may have nothing to do in its second stage: the first one's model goes on as it is.
            least = 0 if (key, name) == ("finetune.second", "steps") else 1
            value = getattr(step, name)
            _require(value >= least, f"{key}.{name} must be at least {least}, found {value}")
        _require(step.warmup_steps >= 0, f"{key}.warmup_steps must not be negative, found {step.warmup_steps}")
        _require(step.learning_rate > 0, f"{key}.learning_rate must be above 0, found {step.learning_rate}")
        _require(
            not (step.subsets and finetune.across_documents),
            f"{key}.subsets does not go with finetune.across_documents, found {step.subsets}; give one of them",
        )
        decays = ("linear", "constant")
        _require(step.decay in decays, f"{key}.decay must be one of {', '.join(decays)}, found {step.decay}")
        _require(
            step.scaling in ("searched", "none", "pi", "ntk", "yarn") or step.scaling.endswith(".json"),
            f"{key}.scaling must be searched, none, pi, ntk, yarn or the path of a .json, found {step.scaling}",
        )
        searched = config.road.search_first.lengths
        _require(
            step.scaling_length is None or step.scaling != "searched" or step.scaling_length in searched,
            f"{key}.scaling_length must be among road.search_first.lengths {searched}, found {step.scaling_length}",
        )
        at_once = finetune.rows_at_once
        _require(
            at_once is None or at_once >= step.rows or step.rows % at_once == 0,
            f"finetune.rows_at_once must divide {key}.rows {step.rows}, found {at_once}",
        )
    _require(
        finetune.second.scaling_length in (None, target),
        f"finetune.second.scaling_length must be road.first_target {target}, which the later stages take its result "
        f"for, found {finetune.second.scaling_length}",
    )
    for (key, step), (later, following) in pairwise(schedule.items()):
        _require(
            step.length <= following.length,
            f"{key}.length must not be above {later}.length, found {step.length}, {following.length}; "
            "a schedule must not shrink",
        )
    longest = finetune.second.length
    _require(
        longest <= target,
        f"finetune.second.length must not be above road.first_target, found {longest} and {target}",
    )


def _check_parallel(config: "Config") -> None:
    parallel, finetune = config.parallel, config.finetune
    count = parallel.devices * parallel.nodes
    _require(
        count == 1 or parallel.strategy != "one",
        f"parallel.strategy must be ddp or fsdp for several devices, found one and {count} devices",
    )
    _require(
        count % parallel.context == 0,
        f"parallel.context must divide parallel.devices times parallel.nodes, found {parallel.context} and {count}",
    )
    allowed = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-true")
    _require(
        parallel.strategy != "fsdp" or finetune.precision in allowed,
        f"finetune.precision must be one of {', '.join(allowed)} under fsdp, found {finetune.precision}",
    )
    for key, wanted in (
        ("finetune.short_share", finetune.short_share),
        ("finetune.learn_factors", finetune.learn_factors),
        ("finetune.lora.rank", finetune.lora.rank),
    ):
        # Its processes must take the same steps with the same weights, whatever rows each has.
        _require(
            parallel.strategy != "fsdp" or not wanted,
            f"{key} does not go with parallel.strategy=fsdp, found {wanted}; take ddp",
        )
    groups = count // parallel.context
    for name in ("first", "second"):
        step = getattr(finetune, name)
        _require(
            step.rows % groups == 0,
            f"finetune.{name}.rows must be a multiple of the {groups} groups of devices that read rows of their own "
            f"(parallel.devices times parallel.nodes over parallel.context), found {step.rows}",
        )
        # Twice, since a device holds one slice of a row's first half and one of its second, for even work.
        slices = 2 * parallel.context if parallel.context > 1 else 1
        _require(
            step.length % slices == 0,
            f"finetune.{name}.length must be a multiple of {slices}, twice parallel.context, found {step.length}",
        )


def _check_evaluate(config: "Config") -> None:
    evaluate = config.evaluate
    for key in ("evaluate.lengths", "evaluate.base_lengths"):
        _rising(key, _at(config, key))
    _require(
        set(evaluate.base_lengths) <= set(evaluate.lengths),
        f"evaluate.base_lengths must be among evaluate.lengths {evaluate.lengths}, found {evaluate.base_lengths}",
    )
    _rising("evaluate.passkey_lengths", evaluate.passkey_lengths)
    _require(
        evaluate.passkey_trials >= evaluate.passkey_depths,
        f"evaluate.passkey_trials must not be below evaluate.passkey_depths, found {evaluate.passkey_trials} "
        f"and {evaluate.passkey_depths}",
    )
    if retrieval := evaluate.retrieval.lengths:
        _rising("evaluate.retrieval.lengths", retrieval)
        longest = config.corpus.long_tokens
        _require(
            retrieval[-1] <= longest,
            f"evaluate.retrieval.lengths must not be above corpus.long_tokens {longest}, found {retrieval}",
        )
    _require(
        evaluate.retrieval.chunk_tokens >= 2,
        f"evaluate.retrieval.chunk_tokens must be at least 2, found {evaluate.retrieval.chunk_tokens}",
    )
    rivals, trained = config.rivals.methods, ("pi", "ntk", "yarn")
    _require(
        set(rivals) <= set(trained) and len(set(rivals)) == len(rivals),
        f"rivals.methods must be some of {', '.join(trained)}, each once, found {rivals}",
    )
    benchmarks = evaluate.benchmarks
    _require(
        set(benchmarks.tasks) <= set(BENCHMARKS),
        f"evaluate.benchmarks.tasks must be some of {', '.join(BENCHMARKS)}, found {benchmarks.tasks}",
    )
    _require(
        set(benchmarks.shots) <= set(BENCHMARKS) and min(benchmarks.shots.values(), default=0) >= 0,
        f"evaluate.benchmarks.shots must be numbers from 0 by task ({', '.join(BENCHMARKS)}), found {benchmarks.shots}",
    )
    unknown = set(evaluate.needles) - set(NEEDLES)
    _require(not unknown, f"evaluate.needles must be some of {', '.join(NEEDLES)}, found {evaluate.needles}")
    if evaluate.needle_lengths is not None:
        _rising("evaluate.needle_lengths", evaluate.needle_lengths)
    _require(
        evaluate.needle_trials >= evaluate.needle_depths,
        f"evaluate.needle_trials must not be below evaluate.needle_depths, found {evaluate.needle_trials} "
        f"and {evaluate.needle_depths}",
    )
    _require(
        evaluate.stride is None or evaluate.stride <= evaluate.lengths[0],
        f"evaluate.stride must not be above the shortest of evaluate.lengths {evaluate.lengths[0]}, or tokens would be "
        f"left out, found {evaluate.stride}",
    )
    methods = config.rope.methods
    _require(
        bool(methods) and set(methods) <= set(METHODS),
        f"rope.methods must be some of {', '.join(METHODS)}, found {methods}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"configuration: {message}")


def _at(config: "Config", key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _each(config: "Config", keys: list[str], holds: Callable[[Any], bool], must: str) -> None:
    for key in keys:
        value = _at(config, key)
        _require(value is None or holds(value), f"{key} {must}, found {value}")


def _rising(key: str, lengths: list[int]) -> None:
    rising = bool(lengths) and lengths[0] >= 1 and all(low < high for low, high in pairwise(lengths))
    _require(rising, f"{key} must be lengths in rising order, found {lengths}")
