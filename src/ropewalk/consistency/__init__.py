"""What the values of one configuration must satisfy, alone and together; each failure names the key."""

from ropewalk.config import Config
from ropewalk.consistency.corpus import check_corpus
from ropewalk.consistency.evaluation import check_evaluate
from ropewalk.consistency.search import check_road, check_search
from ropewalk.consistency.training import check_finetune, check_parallel
from ropewalk.consistency.values import SAMPLERS, SOURCES, at, each, require

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
    "search.step search.gradient_learning_rate finetune.factors_learning_rate finetune.lora.alpha finetune.peak_tflops "
    "finetune.gradient_clip show.base plan.tflops plan.memory_gib plan.efficiency"
).split()
_SHARES = (
    "corpus.largest_rejected_share corpus.near_duplicates search.mutation_probability finetune.recall_share "
    "finetune.short_share finetune.lora.dropout walker.recall_share"
).split()


def check(config: Config) -> None:
    """Raise ValueError, naming the key and what is allowed, unless the values agree with each other."""
    for key, allowed in _CHOICES.items():
        each(config, [key], allowed.__contains__, f"must be one of {', '.join(allowed)}")
    each(config, _NOT_NEGATIVE, lambda value: value >= 0, "must not be negative")
    each(config, _AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1")
    each(config, _POSITIVE, lambda value: value > 0, "must be above 0")
    each(config, _SHARES, lambda value: 0 <= value <= 1, "must lie between 0 and 1")
    check_corpus(config)
    check_road(config)
    check_search(config)
    check_finetune(config)
    check_parallel(config)
    check_evaluate(config)
    if config.show.table is not None:
        for name in ("original_length", "target_length"):
            value = getattr(config.show, name)
            require(value is not None, f"show.{name} must be given with show.table, in tokens, found none")
    cycles = config.walker.cycles
    require(bool(cycles) and min(cycles) >= 1, f"walker.cycles must be numbers of steps from 1, found {cycles}")
    rates = config.walker.learning_rates
    require(
        len(rates) == len(cycles) and min(rates) > 0,
        f"walker.learning_rates must be a number above 0 for each of the {len(cycles)} walker.cycles, found {rates}",
    )
    if config.model.original_length is not None:
        check_window(config, config.model.original_length)


def check_window(config: Config, window: int) -> None:
    """Raise ValueError unless the road leads out of a model's window of ``window`` tokens."""
    require(
        config.road.first_target > window,
        f"road.first_target must be above the model's window, found {config.road.first_target} and {window} tokens",
    )
    for key, step in config.finetune.schedule.items():
        require(
            config.finetune.short_share == 0 or step.length % window == 0,
            f"{key}.length must be a multiple of the model's window {window} where finetune.short_share is not 0, "
            f"found {step.length}",
        )


def check_measured(config: Config, window: int) -> None:
    """Raise ValueError unless evaluate measures what a whole road claims: at the window and at the first target."""
    for key in ("evaluate.lengths", "evaluate.base_lengths"):
        lengths = at(config, key)
        for name, length in (("the model's window", window), ("road.first_target", config.road.first_target)):
            require(length in lengths, f"{key} must hold {name} {length}, found {lengths}")
