"""Whether a GPU computes what the processor does, and in the memory and time of the plan (`make bench-gpu`).

    python benchmarks/gpu/run.py
    python benchmarks/gpu/run.py --models llama-3.2-1b --cases ring "chunks, float32"
    python benchmarks/gpu/run.py --tiny

A few layers of SmolLM2-135M, Llama-3.2-1B and Llama-3-8B with random weights, and of a small model with soft caps, are
read whole, in chunks and layer by layer, continued token by token, and trained; no network is needed. Every result is
compared with the same in float32 on the processor. Memory is the highest above the loaded model and, as the time, that
of one pass over a longer row; both stand beside the plan's figures. A line for each case says how it went; those that
fail say why, and let the script end with 1 after all others have run. ``--tiny`` takes tiny models. Without a GPU, the
processor takes its place, and no results are written.
"""

import argparse
import copy
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu.cases import SHAPES, TINY, Case, Results, Shape, cases_of, check_reading, reference, row_of
from record import write_results
from ropewalk.config import PlanConfig
from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import ModelShape, shape_of
from ropewalk.costs.work import Work, flops_of, seconds
from ropewalk.models.reasons import reason
from ropewalk.plan.devices import Device, device_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "gpu" / "results.json"
MIB = 2**20


def planned_device(model_config: Any, *, name: str | None, device: torch.device) -> Device | None:
    """The device of conf/plan by its ``name``, by default the one whose name that of the card holds; None without."""
    plans = {path.stem: path for path in sorted((ROOT / "conf" / "plan").glob("*.yaml"))}
    if name is None and device.type == "cuda":
        card = torch.cuda.get_device_name(device).lower().replace(" ", "")
        name = next((plan for plan in plans if plan in card), None)
    if name is None:
        return None
    if name not in plans:
        raise ValueError(f"--plan {name} is no file of conf/plan; take one of {', '.join(plans)}")
    config: Any = OmegaConf.merge(PlanConfig, OmegaConf.load(plans[name]))
    return device_of(config, model_config)


@dataclass
class Bench:
    """The cases of a model on a device."""

    name: str
    shape: Shape
    device: torch.device
    plan: Device | None
    reference: Any
    sizes: ModelShape
    table: ActivationTable
    _expected: dict[Results, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, shape: Shape, device: torch.device, plan: str | None) -> "Bench":
        planned = planned_device(shape.config, name=plan, device=device)
        table = ActivationTable(shape.config, gpu=device.type == "cuda")
        return cls(name, shape, device, planned, reference(shape), shape_of(shape.config, name=name), table)

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row of results for each case."""
        for name, case in cases_of(self.shape).items():
            if names and name not in names:
                continue
            # What a case that failed has left.
            gc.collect()
            row: dict[str, Any] = {"model": self.name, "case": name, "dtype": case.dtype, "failure": None}
            try:
                row |= self.run(case)
                row["failure"] = None if row["error"] <= case.limit else f"the error is above {case.limit}"
            except Exception as error:  # Whatever fails on a card is a result.
                row["failure"] = reason(error)
            yield row

    def run(self, case: Case) -> dict[str, Any]:
        """Relative error, and memory and time beside the plan's."""
        shape, short = self.shape, row_of(self.reference, self.shape.short)
        if case.expected not in self._expected:
            self._expected[case.expected] = case.expected(copy.deepcopy(self.reference), short, shape.chunk)
        model = copy.deepcopy(self.reference).to(getattr(torch, case.dtype)).to(self.device)
        if model.config._attn_implementation == "eager" and self.device.type == "cuda":
            model.set_attn_implementation("flex_attention")  # as load_model does
        check_reading(model, shape)
        loaded = self._allocated()
        found = [part.cpu() for part in case.results(model, short.to(self.device), shape.chunk)]
        pairs = zip(found, self._expected[case.expected], strict=True)
        row: dict[str, Any] = {"error": max(relative_error(*pair) for pair in pairs)}
        if case.once is None:
            return row
        length = shape.read if case.work["kind"] == "read" else shape.trained
        rows = row_of(model, length)
        self._forget_peak()
        begun = time.perf_counter()
        case.once(model, rows, shape.chunk)
        self._wait()
        row |= {"length": length, "measured_seconds": time.perf_counter() - begun}
        if self.device.type == "cuda":
            row["measured_mib"] = (torch.cuda.max_memory_allocated(self.device) - loaded) / MIB
        return row if self.plan is None and self.device.type == "cpu" else row | self._planned(case, length, row)

    def _planned(self, case: Case, length: int, row: dict[str, Any]) -> dict[str, Any]:
        work = Work("", "", length=length, rows=1, micro_batch_size=1, batch_size=1, dtype=case.dtype, **case.work)
        memory = needed(work, self.sizes, self.table)
        figures: dict[str, Any] = {"planned_mib": (memory.total - memory.weights) / MIB}
        if "measured_mib" in row:
            figures["memory_ratio"] = figures["planned_mib"] / row["measured_mib"]
        if self.plan is not None:
            figures["planned_seconds"] = seconds(flops_of(work, self.sizes), self.plan.rate(work))
            figures["time_ratio"] = figures["planned_seconds"] / row["measured_seconds"]
        return figures

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _forget_peak(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of ``expected``; infinite where ``found`` holds what is no number."""
    left, right = found.detach().double().flatten(), expected.detach().double().flatten()
    error = float((left - right).norm() / right.norm())
    return error if error == error else float("inf")


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def line_of(row: dict[str, Any]) -> str:
    parts = [f"{row['model']}, {row['case']}:"]
    if "error" in row:
        parts.append(f"error {row['error']:.1e}")
    if "memory_ratio" in row:
        parts.append(f"{row['measured_mib']:,.0f} MiB ({row['memory_ratio']:.2f} of it planned)")
    if "measured_seconds" in row:
        planned = f" ({row['time_ratio']:.2f} of it planned)" if "time_ratio" in row else ""
        parts.append(f"{row['measured_seconds']:.2f} s{planned}")
    return " ".join([*parts, f"FAILED: {row['failure']}" if row["failure"] else "ok"])


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a case failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--models", nargs="+", choices=[*SHAPES, *TINY], help="some models; all by default")
    parser.add_argument("--cases", nargs="+", default=[], help="names of some cases; all by default")
    parser.add_argument("--plan", help="file of conf/plan; by default the one that the card's name holds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names, rows = options.models or list(TINY if options.tiny else SHAPES), list[dict[str, Any]]()
    with alone():
        for name in names:
            shape = {**SHAPES, **TINY}[name]()
            bench = Bench.of(name, shape, device, options.plan)
            for row in bench.rows(options.cases):
                rows.append(row)
                print(line_of(row), flush=True)
    if not rows:
        parser.error(f"--cases {' '.join(options.cases)}: {', '.join(names)} has no such case")
    failed = sum(row["failure"] is not None for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} cases are as on the processor")
    if device.type == "cuda":
        card = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        write_results(options.results, [{**card, **row} for row in rows])
    return int(failed > 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
