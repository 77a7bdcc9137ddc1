"""The plan of a road: what every stage costs, what does not fit, and the setting that makes it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.config import Config
from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import ModelShape, read_config, shape_of
from ropewalk.costs.work import Memory, Work, flops_of, seconds
from ropewalk.models.precision import native_bf16
from ropewalk.plan.devices import Device, device_of
from ropewalk.plan.road import road_works

_MOST_DEVICES = 1024


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs on a device."""

    work: Work
    flops: float
    memory: Memory
    seconds: float

    @property
    def device_hours(self) -> float:
        return self.seconds * self.work.devices / 3600


@dataclass(frozen=True)
class Plan:
    shape: ModelShape
    device: Device
    costs: tuple[Cost, ...]
    advice: tuple[str, ...]
    """A line for each piece of work that does not fit."""


def plan(config: Config) -> Plan:
    """The whole road of ``config`` on the devices of its sections plan and parallel.

    Raises:
        ValueError: the model's config cannot be read, or transformers has no model for it.
    """
    model_config = read_config(config.model.path)
    shape = shape_of(model_config, name=config.model.name, original_length=config.model.original_length)
    precision = config.finetune.precision
    here = native_bf16() if precision == "auto" else "mixed" in precision
    device = device_of(config.plan, model_config, mixed=here, dtype=config.model.dtype)
    mixed = device.mixed if precision == "auto" else here
    table = ActivationTable(model_config)
    costs, advice = [], []
    for work in road_works(config, shape.rotary, mixed=mixed):
        memory = needed(work, shape, table)
        flops = flops_of(work, shape)
        time = seconds(flops, device.rate(work.kind), devices=work.devices)
        costs.append(Cost(work, flops.total, memory, time))
        if memory.total > device.memory:
            advice.append(f"{work.stage}, {work.what}: {_advice(work, memory, shape, table, device)}")
    return Plan(shape, device, tuple(costs), tuple(advice))


def _advice(work: Work, memory: Memory, shape: ModelShape, table: ActivationTable, device: Device) -> str:
    found = f"needs {gib(memory.total)} of {gib(device.memory)}"
    for changed, settings in _smaller(work):
        total = needed(changed, shape, table).total
        if total <= device.memory:
            return f"{found}; {gib(total)} with {' '.join(settings)}"
    return f"{found}; no setting of this plan makes it fit, take a larger device or a smaller model"


def _smaller(work: Work) -> Iterator[tuple[Work, list[str]]]:
    """Work that needs less memory and the settings that make it so, each on top of the last."""
    settings: list[str] = []
    if work.kind == "read":
        if work.rows_at_once > 1 and work.stage != "evaluate":
            work = replace(work, rows_at_once=1)
            settings.append(f"search.batch_tokens={work.length}")
            yield work, settings
        if work.dtype == "float32":
            yield replace(work, dtype="bfloat16"), [*settings, "model.dtype=bfloat16"]
        return
    searching = not work.stage.startswith("finetune")
    if work.rows_at_once > 1:
        work = replace(work, rows_at_once=1)
        settings.append("search.gradient_rows=1" if searching else "finetune.rows_at_once=1")
        yield work, settings
    if not work.recompute:
        work = replace(work, recompute=True)
        settings.append("search.gradient_checkpointing=true" if searching else "finetune.activations=recompute")
        yield work, settings
    if searching:
        if work.dtype == "float32":
            yield replace(work, dtype="bfloat16"), [*settings, "model.dtype=bfloat16"]
        return
    # More devices: weights split over them first, then rows too.
    devices = max(2, work.devices)
    groups_at_most = max(1, work.rows_per_step)
    while devices <= _MOST_DEVICES:
        for context in sorted({work.context, *(2**power for power in range(1, 11))}):
            divides = devices % context == 0 and work.length % (2 * context) == 0
            if divides and devices // context <= groups_at_most:
                more = f"parallel=fsdp parallel.devices={devices} parallel.context={context}"
                yield replace(work, devices=devices, context=context, sharded=True), [*settings, more]
        devices *= 2


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _duration(value: float) -> str:
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 36_000 else f"{value / 3600:,.1f} h"


def plan_rows(found: Plan) -> list[dict[str, Any]]:
    """A row per piece of work."""
    return [
        {
            "stage": cost.work.stage,
            "work": cost.work.what,
            "tokens": cost.work.tokens,
            "flops": cost.flops,
            "devices": cost.work.devices,
            "peak_gib": cost.memory.total / 2**30,
            "fits": cost.memory.total <= found.device.memory,
            "seconds": cost.seconds,
            "device_hours": cost.device_hours,
        }
        for cost in found.costs
    ]


def plan_text(found: Plan) -> str:
    """The plan as a table with a line per stage, and below it what does not fit."""
    shape, device = found.shape, found.device
    lines = [
        f"{shape.name}: {shape.parameters:,} parameters, window {shape.rotary.original_length:,}; "
        f"{device.name} with {gib(device.memory)}",
        f"{'stage':<46}{'tokens':>12}{'FLOPs':>10}{'devices':>9}{'peak each':>14}{'time':>10}{'hours':>9}",
    ]
    for stage in dict.fromkeys(cost.work.stage for cost in found.costs):
        own = [cost for cost in found.costs if cost.work.stage == stage]
        lines.append(_line(stage, own, device))
        if len(own) > 1:
            lines += [_line(f"  {cost.work.what}", [cost], device) for cost in own]
    lines.append(_line("all", found.costs, device))
    lines.append("hours are those of all devices together; a search that ends early costs less")
    if found.advice:
        lines += ["", "does not fit:", *(f"  {line}" for line in found.advice)]
    return "\n".join(lines)


def _line(name: str, costs: Sequence[Cost], device: Device) -> str:
    peak = max(cost.memory.total for cost in costs)
    return (
        f"{name:<46}{sum(cost.work.tokens for cost in costs):>12.3g}{sum(cost.flops for cost in costs):>10.2g}"
        f"{max(cost.work.devices for cost in costs):>9}"
        f"{gib(peak) + ('!' if peak > device.memory else ''):>14}"
        f"{_duration(sum(cost.seconds for cost in costs)):>10}{sum(cost.device_hours for cost in costs):>9.1f}"
    )
