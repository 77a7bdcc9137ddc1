"""The plan of an extension: whether it fits and what to do where it does not, and what every stage costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.config import Config
from ropewalk.plan.costs import Cost, Planner
from ropewalk.plan.devices import Device
from ropewalk.plan.remedies import Remedy, memory_of_choices, remedies, too_large


@dataclass(frozen=True)
class Plan:
    model: str
    """Name and sizes of the model, in words."""
    device: Device
    costs: tuple[Cost, ...]
    remedies: tuple[Remedy, ...]
    """Settings under which everything fits, best first; none are needed where it does."""
    least: float
    """Bytes that a device must hold under the settings that need least."""
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether everything fits, or else what to do; in one line."""
        device = self.device
        if not too_large(self.costs, device):
            return f"fits: {_summary(self.costs, device)}"
        if self.remedies:
            return f"does not fit: set {self.remedies[0]}; then {_summary(self.remedies[0].costs, device)}"
        larger = [name for name, memory in memory_of_choices() if memory >= self.least]
        other = f"take plan={' or plan='.join(larger)}" if larger else "no device of conf/plan holds that"
        return (
            f"does not fit: no setting makes it fit into the {gib(device.memory)} of {device.name}, since "
            f"{gib(self.least)} are needed at the least; {other}, a lower extension.target or a smaller model"
        )


def plan(config: Config) -> Plan:
    """The plan of the whole pipeline of ``config``; raises ValueError as `Planner`."""
    planner = Planner(config)
    costs = planner.costs(config)
    options, least = (remedies(planner, config)) if too_large(costs, planner.device) else ((), 0.0)
    shape, dtypes = planner.shape, dict.fromkeys(cost.work.computes_in for cost in costs)
    model = (
        f"{shape.name}: {shape.parameters:,} parameters, window {planner.window:,}, extension.way="
        f"{config.extension.way} to {config.extension.second_target:,}; {planner.device.name} with "
        f"{gib(planner.device.memory)} for use, computing in {' and '.join(dtypes)}"
    )
    return Plan(model, planner.device, tuple(costs), options, least, tuple(_notes(config, planner.device)))


def _notes(config: Config, device: Device) -> list[str]:
    notes = ["hours are those of all devices together; a search that ends early costs less"]
    count = config.parallel.devices
    if device.gpu and config.search.workers < count:
        notes.append(f"each search uses {config.search.workers} of {count} devices; search.workers={count} uses all")
    if device.gpu and config.model.dtype == "float32":
        notes.append("searches and evaluation compute in model.dtype=float32, which takes many times as long as bf16")
    if config.evaluate.benchmarks.tasks:
        notes.append("general benchmarks (evaluate.benchmarks) are not counted")
    return notes


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _duration(value: float) -> str:
    if value < 600:
        return f"{value:.0f} s"
    if value < 36_000:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:,.1f} h" if value < 3.6e6 else f"{value / 86_400:,.0f} days"


def _summary(costs: Sequence[Cost], device: Device) -> str:
    """The largest memory, the time and the stage that takes most of it."""
    largest = max(costs, key=lambda cost: cost.memory.total)
    by_stage: dict[str, float] = {}
    for cost in costs:
        by_stage[cost.work.stage] = by_stage.get(cost.work.stage, 0.0) + cost.seconds
    longest = max(by_stage, key=lambda stage: by_stage[stage])
    hours = sum(cost.device_hours for cost in costs)
    return (
        f"{gib(largest.memory.total)} of {gib(device.memory)} at most (in {largest.work.stage}) and "
        f"{_duration(sum(by_stage.values()))}, {hours:,.1f} device hours, most of them in {longest} "
        f"({_duration(by_stage[longest])})"
    )


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """A row per piece of work."""
    return [
        {
            "stage": cost.work.stage,
            "work": cost.work.what,
            "tokens": cost.work.tokens,
            "flops": cost.flops,
            "computes_in": cost.work.computes_in,
            "devices": cost.work.devices,
            "weights_gib": cost.memory.weights / 2**30,
            "gradients_gib": cost.memory.gradients / 2**30,
            "optimizer_gib": cost.memory.optimizer / 2**30,
            "activations_gib": cost.memory.activations / 2**30,
            "peak_gib": cost.memory.total / 2**30,
            "fits": cost.memory.total <= plan.device.memory,
            "seconds": cost.seconds,
            "device_hours": cost.device_hours,
        }
        for cost in plan.costs
    ]


def plan_text(plan: Plan) -> str:
    """The verdict, the plan as a table with a line per stage, and below it notes and what does not fit."""
    lines = [
        plan.verdict,
        *(f"  or set {remedy}; then {_summary(remedy.costs, plan.device)}" for remedy in plan.remedies[1:]),
        "",
        plan.model,
        f"{'stage':<46}{'tokens':>12}{'FLOPs':>10}{'devices':>9}{'peak each':>14}{'time':>13}{'hours':>13}",
    ]
    for stage in dict.fromkeys(cost.work.stage for cost in plan.costs):
        stage_costs = [cost for cost in plan.costs if cost.work.stage == stage]
        lines.append(_line(stage, stage_costs, plan.device))
        if len(stage_costs) > 1:
            lines += [_line(f"  {cost.work.what}", [cost], plan.device) for cost in stage_costs]
    lines += [_line("all", plan.costs, plan.device), *plan.notes]
    if large := too_large(plan.costs, plan.device):
        lines += ["", "does not fit:", *(f"  {_parts(cost)}" for cost in large)]
    return "\n".join(lines)


def _parts(cost: Cost) -> str:
    """What makes up the memory of a piece of work that does not fit."""
    memory, work = cost.memory, cost.work
    copies = work.models * work.processes
    parts = {
        f"weights of {copies} models" if copies > 1 else "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer states": memory.optimizer,
        "activations" + (" and KV cache" if work.generates else ""): memory.activations,
    }
    listed = ", ".join(f"{gib(size)} {name}" for name, size in parts.items() if size)
    return f"{work.stage}, {work.what}: {gib(memory.total)} ({listed})"


def _line(name: str, costs: Sequence[Cost], device: Device) -> str:
    peak = max(cost.memory.total for cost in costs)
    return (
        f"{name:<46}{sum(cost.work.tokens for cost in costs):>12.3g}{sum(cost.flops for cost in costs):>10.2g}"
        f"{max(cost.work.devices for cost in costs):>9}"
        f"{gib(peak) + ('!' if peak > device.memory else ''):>14}"
        f"{_duration(sum(cost.seconds for cost in costs)):>13}{sum(cost.device_hours for cost in costs):>13,.1f}"
    )
