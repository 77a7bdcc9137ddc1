"""What evaluate measures, and against what."""

from ropewalk.config import Config
from ropewalk.consistency.values import BENCHMARKS, IN_TEXTS, METHODS, NEEDLES, at, require, rising


def check_evaluate(config: Config) -> None:
    evaluate = config.evaluate
    for key in ("evaluate.lengths", "evaluate.base_lengths"):
        rising(key, at(config, key))
    require(
        set(evaluate.base_lengths) <= set(evaluate.lengths),
        f"evaluate.base_lengths must be among evaluate.lengths {evaluate.lengths}, found {evaluate.base_lengths}",
    )
    rising("evaluate.passkey_lengths", evaluate.passkey_lengths)
    require(
        evaluate.passkey_trials >= evaluate.passkey_depths,
        f"evaluate.passkey_trials must not be below evaluate.passkey_depths, found {evaluate.passkey_trials} "
        f"and {evaluate.passkey_depths}",
    )
    require(
        evaluate.retrieval.chunk_tokens >= 2,
        f"evaluate.retrieval.chunk_tokens must be at least 2, found {evaluate.retrieval.chunk_tokens}",
    )
    _check_tasks(config)
    rivals, trained = config.rivals.methods, ("pi", "ntk", "yarn")
    require(
        set(rivals) <= set(trained) and len(set(rivals)) == len(rivals),
        f"rivals.methods must be some of {', '.join(trained)}, each once, found {rivals}",
    )
    benchmarks = evaluate.benchmarks
    require(
        set(benchmarks.tasks) <= set(BENCHMARKS),
        f"evaluate.benchmarks.tasks must be some of {', '.join(BENCHMARKS)}, found {benchmarks.tasks}",
    )
    require(
        set(benchmarks.shots) <= set(BENCHMARKS) and min(benchmarks.shots.values(), default=0) >= 0,
        f"evaluate.benchmarks.shots must be numbers from 0 by task ({', '.join(BENCHMARKS)}), found {benchmarks.shots}",
    )
    require(
        evaluate.needle_trials >= evaluate.needle_depths,
        f"evaluate.needle_trials must not be below evaluate.needle_depths, found {evaluate.needle_trials} "
        f"and {evaluate.needle_depths}",
    )
    require(
        evaluate.stride is None or evaluate.stride <= evaluate.lengths[0],
        f"evaluate.stride must not be above the shortest of evaluate.lengths {evaluate.lengths[0]}, or tokens would be "
        f"left out, found {evaluate.stride}",
    )
    methods = config.rope.methods
    require(
        bool(methods) and set(methods) <= set(METHODS),
        f"rope.methods must be some of {', '.join(METHODS)}, found {methods}",
    )


def _check_tasks(config: Config) -> None:
    evaluate, retrieval = config.evaluate, config.evaluate.retrieval
    needle_lengths = evaluate.passkey_lengths
    if evaluate.needle_lengths is not None:
        needle_lengths = evaluate.needle_lengths
        rising("evaluate.needle_lengths", needle_lengths)
    if retrieval.lengths:
        rising("evaluate.retrieval.lengths", retrieval.lengths)
    for key, allowed, lengths_key, lengths in (
        ("evaluate.needles", NEEDLES, "evaluate.needle_lengths", needle_lengths),
        ("evaluate.retrieval.tasks", ("passkey", *NEEDLES), "evaluate.retrieval.lengths", retrieval.lengths),
    ):
        tasks, longest = at(config, key), config.corpus.long_tokens
        require(
            set(tasks) <= set(allowed) and len(set(tasks)) == len(tasks),
            f"{key} must be some of {', '.join(allowed)}, each once, found {tasks}",
        )
        require(
            IN_TEXTS not in tasks or max(lengths, default=0) <= longest,
            f"{lengths_key} must not be above corpus.long_tokens {longest} for {IN_TEXTS} in {key}, found {lengths}",
        )
    require(
        bool(retrieval.tasks) or not retrieval.lengths,
        "evaluate.retrieval.tasks must not be empty where evaluate.retrieval.lengths are given",
    )
