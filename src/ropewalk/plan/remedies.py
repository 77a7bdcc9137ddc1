"""Settings that make a plan fit; each is composed, checked and planned before it is suggested."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import MISSING

from ropewalk.composition import ROOT
from ropewalk.config import Config, PlanConfig
from ropewalk.consistency import check
from ropewalk.costs.advice import FEWER_TOKENS
from ropewalk.costs.work import Work
from ropewalk.defaults.follow import follow, set_value
from ropewalk.plan.costs import Cost, Planner
from ropewalk.plan.devices import Device
from ropewalk.ways import is_left_out

Values = Mapping[str, Any]
"""Values by the configuration's dotted keys."""
_RANK = 16
_GROUPS = {"parallel.strategy": "parallel"}
"""Config groups to choose in place of a key, since they set further keys with it."""
_USUAL = {"parallel.nodes": 1, "parallel.context": 1}
"""Values that need not be given."""
_KEPT = ("finetune.lora.rank", *(f"parallel.{name}" for name in ("strategy", "devices", "nodes", "context")))
"""Keys that are kept even where others suffice, because they define the kind of attempt."""
_NODES = (1, 2, 4, 8, 16)
"""Numbers of machines of eight devices that are tried."""


@dataclass(frozen=True)
class Remedy:
    """Settings under which everything fits."""

    values: Values
    costs: tuple[Cost, ...]

    def __str__(self) -> str:
        """As overrides of a command line."""
        return " ".join(_override(key, value) for key, value in self.values.items() if _USUAL.get(key) != value)


def _override(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"'{key}=[{','.join(map(str, value))}]'"
    return f"{_GROUPS.get(key, key)}={str(value).lower() if isinstance(value, bool) else value}"


def too_large(costs: Sequence[Cost], device: Device) -> list[Cost]:
    """The pieces of work that a device does not hold."""
    return [cost for cost in costs if cost.memory.total > device.memory]


def memory_of_choices() -> Iterator[tuple[str, float]]:
    """Names of the choices of the group plan that state a memory, and the bytes that can be used of it; least first."""
    files = sorted((ROOT / "conf" / "plan").glob("*.yaml"))
    sizes = [(yaml.safe_load(file.read_text(encoding="utf-8")).get("memory_gib"), file.stem) for file in files]
    for size, name in sorted((size, name) for size, name in sizes if size is not None):
        yield name, size * 2**30 * (1 - PlanConfig().reserve)


def changed(config: Config, values: Values) -> Config:
    """``config`` with other values; everything that was not given follows from these again.

    Raises:
        ValueError: they contradict the rest.
    """
    new = copy.deepcopy(config)
    for key in config.followed:
        set_value(new, key, MISSING)
    for key, value in values.items():
        set_value(new, key, value)
    new.followed = {}
    follow(new)
    check(new)
    return new


Step = Callable[[Config, Sequence[Work]], Iterator[Values]]
"""(configuration, the work that does not fit under it) -> values that may help, the cheapest first."""


class Attempt:
    """A configuration under further values, and the work that does not fit under them."""

    def __init__(self, planner: Planner, start: Config, values: Values) -> None:
        self._planner, self._start, self.values = planner, start, dict(values)
        self.config = changed(start, values) if values else start
        sizes = {work: planner.memory(work).total for work in planner.works(self.config)}
        self.largest = max(sizes.values())
        self.too_large = [work for work, size in sizes.items() if size > planner.device.memory]
        self._excess = sum(size - planner.device.memory for size in sizes.values() if size > planner.device.memory)

    def under(self, values: Values) -> "Attempt | None":
        """This attempt with further ``values``; None where they contradict the rest."""
        try:
            return Attempt(self._planner, self._start, {**self.values, **values})
        except ValueError:
            return None

    def climbed(self, steps: Sequence[Step]) -> "Attempt":
        """This attempt with the values of those ``steps`` that reduce what exceeds the memory."""
        best = self
        for step in steps:
            for values in step(best.config, best.too_large):
                further = best.under(values)
                if further and further._excess < best._excess:
                    best = further
        return best

    def pruned(self) -> "Attempt":
        """This attempt without the values that are not needed to fit."""
        best = self
        for key in reversed(self.values):
            if key in _KEPT:
                continue
            remaining = {name: value for name, value in best.values.items() if name != key}
            try:
                without = Attempt(self._planner, self._start, remaining)
            except ValueError:
                continue
            if not without.too_large:
                best = without
        return best


def _shorter_batches(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    if any(_searches(work) and work.kind == "learn" and work.length > config.extension.target for work in works):
        yield {"search.double_length_every": None}
    if any(_searches(work) and work.kind == "read" and work.micro_batch_size > 1 for work in works):
        yield {"search.batch_tokens": min(work.length for work in works if _searches(work))}
    if any(_searches(work) and work.is_chunked for work in works) and config.search.batch_tokens > FEWER_TOKENS:
        yield {"search.batch_tokens": FEWER_TOKENS}
    if any(work.processes > 1 for work in works):
        yield {"search.workers": 1}
    if any(_searches(work) and work.kind == "learn" and work.micro_batch_size > 1 for work in works):
        yield {"search.gradient_batch_size": 1}
    reads_chunks = any(work.chunk is not None and not _searches(work) for work in works)
    if reads_chunks and config.evaluate.chunk_tokens > FEWER_TOKENS:
        yield {"evaluate.chunk_tokens": FEWER_TOKENS}
    if any(_trains(work) and work.micro_batch_size > 1 for work in works):
        yield {"finetune.micro_batch_size": 1}


def _recomputed(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    return _kept_as("full", works)


def _offloaded(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    return _kept_as("offload", works)


def _offloaded_searches(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    """Offloading for the searches alone, which more devices do not help."""
    return _kept_as("offload", [work for work in works if _searches(work)])


def _kept_as(kind: str, works: Sequence[Work]) -> Iterator[Values]:
    if any(_searches(work) and work.kind == "learn" for work in works):
        yield {"search.activation_checkpointing": kind}
    if any(map(_trains, works)):
        yield {"finetune.activation_checkpointing": kind}


def _half_precision(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    """Weights are trained in float32 all the same (`FinetuneConfig.weights_dtype`)."""
    if config.model.dtype == "float32" and any(not _trains(work) or work.kind == "adapt" for work in works):
        yield {"model.dtype": "bfloat16"}


def _less_compared(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    if any(work.models > 1 for work in works) and config.finetune.control:
        yield {"finetune.control": False}
    within = [length for length in config.evaluate.lengths if length <= config.extension.second_target]
    if within != config.evaluate.lengths and any(work.stage in ("evaluate", "export") for work in works):
        yield {"evaluate.lengths": within}


def _more_devices(config: Config, works: Sequence[Work]) -> Iterator[Values]:
    """FSDP on as many devices or more, which share rows where those are too few or too long."""
    now = config.parallel.devices * config.parallel.nodes
    for nodes, devices in ((1, 2), (1, 4), *((nodes, 8) for nodes in _NODES)):
        for context in (1, 2, 4, 8):
            if nodes * devices >= now and any(map(_trains, works)) and config.parallel.context <= context <= devices:
                sizes = {"parallel.strategy": "fsdp", "parallel.devices": devices, "parallel.nodes": nodes}
                yield {**sizes, "parallel.context": context}


_ONE_DEVICE: tuple[Step, ...] = (_shorter_batches, _recomputed, _half_precision, _less_compared, _offloaded)
_STEPS: tuple[tuple[Step, ...], ...] = (
    # Offloading takes time, and is not needed where more devices are enough.
    (_shorter_batches, _recomputed, _half_precision, _less_compared, _more_devices, _offloaded_searches),
    (*_ONE_DEVICE, _more_devices),
)


def _searches(work: Work) -> bool:
    return work.stage.startswith("search") or work.stage == "recover"


def _trains(work: Work) -> bool:
    return work.kind in ("adapt", "train")


def remedies(planner: Planner, config: Config) -> tuple[tuple[Remedy, ...], float]:
    """(settings that make all of ``config`` fit, bytes that a device must hold under the settings that need least).

    Those that leave the training the same come first. A lower target is named where nothing else helps.
    """
    unchanged = Attempt(planner, config, {})
    attempts = [_best(unchanged, _STEPS)]
    starts = {unchanged: _STEPS}
    trains = not is_left_out("finetune_second", config.extension.way) and not config.finetune.lora.rank
    if trains and (not _fits(attempts[0]) or "parallel.strategy" in attempts[0].values):
        adapters = {"finetune.lora.rank": _RANK, "model.dtype": "bfloat16", "finetune.optimizer": "adamw_8bit"}
        if adapted := unchanged.under(adapters):
            starts[adapted] = (_ONE_DEVICE,)
            attempts.append(_best(adapted, (_ONE_DEVICE,)))
    least = min(attempt.largest for attempt in attempts)
    if not any(map(_fits, attempts)):
        lesser: list[Values] = [{"search.gradient_steps": 0}] if config.search.trials else []
        for choices in (list(_goals(planner, config)), lesser):
            fitting = (_first_that_fits(start, steps, choices) for start, steps in starts.items())
            attempts += [attempt for attempt in fitting if attempt][:1]
    fitting_attempts = [attempt.pruned() for attempt in attempts if _fits(attempt)]
    return tuple(Remedy(attempt.values, tuple(planner.costs(attempt.config))) for attempt in fitting_attempts), least


def _best(start: Attempt, ladders: Sequence[Sequence[Step]]) -> Attempt:
    """``start`` after the steps of the first ladder with which everything fits, or else of the last ladder."""
    attempt = start
    for steps in ladders:
        attempt = start.climbed(steps)
        if _fits(attempt):
            break
    return attempt


def _first_that_fits(start: Attempt, ladders: Sequence[Sequence[Step]], choices: Iterable[Values]) -> Attempt | None:
    for values in choices:
        changed_start = start.under(values)
        if changed_start and _fits(attempt := _best(changed_start, ladders)):
            return attempt
    return None


def _goals(planner: Planner, config: Config) -> Iterator[Values]:
    """Lower targets: three quarters of this one, its half, three quarters of that …"""
    goal = config.extension.target
    while goal > planner.window:
        for lower in (goal * 3 // 4, goal // 2):
            if lower > planner.window:
                yield {"extension.target": lower}
        goal //= 2


def _fits(attempt: Attempt) -> bool:
    return not attempt.too_large
