"""The plan against measurement on this machine's processor (`make bench-plan`): memory within 10 %, time within 20 %.

Each case runs in a process of its own, two optimizer steps or passes. Times are the processor's own, so that other work
on the machine counts little, and the plan's and the case's are taken in turn; the middle one of their ratios counts.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.costs.activations import ActivationTable, needed
from ropewalk.costs.shape import build, shape_of, with_layers
from ropewalk.costs.work import Kind, Work, flops_of, seconds
from ropewalk.models.loss import long_token_losses, mean_loss, token_losses
from ropewalk.models.precision import is_bfloat16_fast
from ropewalk.plan.devices import measured_rate
from ropewalk.rope import RopeScaling, extend

CASES: list[dict[str, Any]] = [
    {"model": "models/walker", "kind": "read", "length": 16_384, "rows": 1},
    {"model": "models/walker", "kind": "read", "length": 16_384, "rows": 1, "dtype": "bfloat16"},
    {"model": "models/walker", "kind": "read", "length": 16_384, "rows": 1, "chunk": 4096},
    {"model": "models/walker", "kind": "read", "length": 16_384, "rows": 1, "chunk": 4096, "dtype": "bfloat16"},
    {"model": "models/walker", "kind": "train", "length": 2048, "rows": 4},
    {"model": "models/walker", "kind": "train", "length": 8192, "rows": 1, "recompute": True},
    {"model": "wide", "kind": "train", "length": 1024, "rows": 2},
    {"model": "wide", "kind": "read", "length": 8192, "rows": 1, "dtype": "bfloat16"},
    {"model": "smollm2", "kind": "read", "length": 4096, "rows": 1, "dtype": "bfloat16"},
    {"model": "smollm2", "kind": "read", "length": 8192, "rows": 1, "chunk": 2048},
    {"model": "smollm2", "kind": "train", "length": 1024, "rows": 1, "recompute": True},
]
DEFAULTS = {"recompute": False, "chunk": None, "dtype": "float32"}
CHANGES: dict[str, dict[str, Any]] = {
    "models/walker": {},
    # A model of 14 million parameters, whose weights count beside its activations.
    "wide": {
        "hidden_size": 384, "intermediate_size": 1056, "num_hidden_layers": 6, "vocab_size": 8192,
        "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64,
    },
    # The shape of SmolLM2-135M.
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""What differs from the walker's config."""


def config_of(name: str) -> Any:
    config = AutoConfig.from_pretrained("models/walker")
    config.update(CHANGES[name])
    return config


def run_case(case: dict[str, Any]) -> dict[str, float]:
    """Most memory above the process without a model, and seconds of a step that follows a first one."""
    config, kind = config_of(case["model"]), case["kind"]
    _pass(build(with_layers(config, 1)), torch.full((1, 64), 3), kind).backward()
    dtype, chunk = getattr(torch, case["dtype"]), case["chunk"]
    # From here on the libraries are loaded, and what follows is the model's.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    model = build(config, dtype=dtype)
    pairs = shape_of(config, name="").rotary.rotary_dim // 2
    extend(model, RopeScaling((1.0,) * pairs, 256, 512))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if case["recompute"]:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()

    def step(rows: torch.Tensor) -> None:
        if kind == "read":
            with torch.no_grad():
                _pass(model, rows, kind, chunk)
            return
        _pass(model, rows, kind).backward()
        optimizer.step()
        optimizer.zero_grad()

    rows = torch.full((case["rows"], case["length"]), 3)
    step(rows)
    begun = time.process_time()
    step(rows)
    taken = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"bytes": peak - before, "seconds": taken}


def _pass(model: Any, rows: torch.Tensor, kind: Kind, chunk: int | None = None) -> torch.Tensor:
    if chunk is not None:
        return long_token_losses(model, rows, chunk=chunk).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "train" and is_bfloat16_fast()):
        return token_losses(model, rows).mean() if kind == "read" else mean_loss(model, rows)


def planned(case: dict[str, Any]) -> tuple[float, float]:
    """(bytes, seconds): what the plan says of the same."""
    config, kind = config_of(case["model"]), case["kind"]
    mixed = kind == "train" and is_bfloat16_fast()
    rows = case["rows"]
    work = Work(
        "", "", kind, case["length"], rows, rows, rows, recompute=case["recompute"], mixed=mixed, chunk=case["chunk"],
        dtype=case["dtype"],
    )  # fmt: skip
    shape = shape_of(config, name=case["model"])
    memory = needed(work, shape, ActivationTable(config))
    rate = measured_rate(config, kind=kind, mixed=mixed, dtype=case["dtype"], clock=time.process_time)
    return memory.total, float(seconds(flops_of(work, shape), rate))


def _run_into(found: Any, case: dict[str, Any]) -> None:
    torch.set_num_threads(case.pop("threads"))
    found.put(run_case(case))


def measured(case: dict[str, Any], *, start: str) -> dict[str, float]:
    """`run_case` in a process of its own, started in the way of multiprocessing's that ``start`` names."""
    context: Any = multiprocessing.get_context(start)
    found = context.SimpleQueue()
    process = context.Process(target=_run_into, args=(found, {**case, "threads": torch.get_num_threads()}))
    process.start()
    values: dict[str, float] = found.get()
    process.join()
    return values


def measured_both(case: dict[str, Any]) -> dict[str, float]:
    """Bytes in a process that gives back what it frees, which takes time, and seconds in one that does not."""
    return {"bytes": measured(case, start="forkserver")["bytes"], "seconds": measured(case, start="fork")["seconds"]}


def main() -> None:
    os.chdir(Path(__file__).resolve().parents[2])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # A process that is forked from one with a pool of threads hangs in it.
    torch.set_num_threads(1)
    # Read by the C library of the fork server: what is freed goes back at once and does not count as used.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["ropewalk.plan.devices", "ropewalk.costs.activations", "transformers.models.llama.modeling_llama"]
    )
    rows = []
    for case in ({**DEFAULTS, **case} for case in CASES):
        rounds = [(planned(case), measured_both(case)) for _ in range(arguments.rounds)]
        plan_bytes = rounds[0][0][0]
        found_bytes = statistics.median(found["bytes"] for _, found in rounds)
        ratios = [plan[1] / found["seconds"] for plan, found in rounds]
        kind: Kind = case["kind"]
        rows.append(
            {
                **case,
                "kind": kind,
                "planned_mib": plan_bytes / 2**20,
                "measured_mib": found_bytes / 2**20,
                "memory_ratio": plan_bytes / found_bytes,
                "memory_limit": 0.1,
                "planned_cpu_seconds": statistics.median(plan[1] for plan, _ in rounds),
                "measured_cpu_seconds": statistics.median(found["seconds"] for _, found in rounds),
                "time_ratio": statistics.median(ratios),
                "time_ratios": sorted(ratios),
                "time_limit": 0.2,
                "load_average": os.getloadavg()[0],
            }
        )
        print(rows[-1])
    write_results(Path("benchmarks/plan/results.json"), rows)


if __name__ == "__main__":
    main()
