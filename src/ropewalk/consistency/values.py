"""What checks of a configuration are made of, and the names that it may hold."""

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import Any

from ropewalk.config import Config

METHODS = ("none", "pi", "ntk", "dynamic_ntk", "abf", "yarn", "longrope")
"""What evaluate compares; longrope stands for the searched factors."""
SOURCES = ("stdlib", "jsonl", "text", "redpajama_v1", "redpajama_sample", "redpajama_v2")
NEEDLES = ("single", "multi_key", "multi_value", "variable_tracking", "multi_key_text")
IN_TEXTS = "multi_key_text"
"""The needle task that is hidden in test documents."""
BENCHMARKS = ("arc_challenge", "arc_easy", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k")
SAMPLERS = ("evolution", "paper", "start_tokens", "cmaes", "tpe", "random")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"configuration: {message}")


def at(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def each(config: Config, keys: list[str], holds: Callable[[Any], bool], must: str) -> None:
    for key in keys:
        value = at(config, key)
        require(value is None or holds(value), f"{key} {must}, found {value}")


def rising(key: str, lengths: list[int]) -> None:
    rising = bool(lengths) and lengths[0] >= 1 and all(low < high for low, high in pairwise(lengths))
    require(rising, f"{key} must be lengths in rising order, found {lengths}")
