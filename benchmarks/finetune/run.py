"""Speed and memory of a training step (`make bench-finetune`), against transformers' own loss path.

Model, length and strategy make a row. Each is measured by two processes of its own, ours and the reference, which does
`model(rows, labels=rows).loss.backward()` with the same optimizer; both take a warm-up step and then some steps, and
peak memory counts from the loaded model on (the C library gives back at once what is freed, for both, or else its holes
would count). Without `--models` the walker and a copy of it with a vocabulary of 32,000
are measured at 16,384 tokens. Goals: with activation checkpointing at most half of the reference's memory at 0.7 times
its speed; plain, no more memory at 1.0 times its speed.

Every row is written when it is done, and rows that are there are not measured again: an interrupted benchmark resumes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.corpus.segments import Rows
from ropewalk.files import read_json
from ropewalk.finetune.history import peak_mib
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.utilisation import flops_per_token, peak_flops
from ropewalk.models.base import load_model
from ropewalk.rope import extend, methods, rotary_shape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "finetune" / "results.json"
MODELS = ("walker", "walker-32000")
STRATEGIES = ("checkpointing", "plain")
LENGTH = 16_384


def load(name: str) -> Any:
    model: Any = load_model(str(ROOT / "models" / "walker"))
    if name == "walker-32000":
        # Mean-resizing costs a matrix of its own, which would count as the reference's peak.
        model.resize_token_embeddings(32_000, mean_resizing=False)
    return model


def reset_peak() -> float:
    """MiB that the process takes now; its peak is counted from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak() -> float:
    return peak_mib() if torch.cuda.is_available() else _status("VmHWM")


def measure(name: str, strategy: str, *, length: int, steps: int) -> dict[str, float]:
    """Tokens a second and peak memory of ``steps`` steps of one row, in this process."""
    torch.manual_seed(0)
    model = load(name)
    shape = rotary_shape(model)
    extend(
        model,
        methods.yarn(
            rotary_dim=shape.rotary_dim, base=shape.base, original_length=shape.original_length, target_length=length
        ),
    )
    rows = torch.randint(3, model.config.vocab_size, (1, length), device=model.device)
    model.train()
    own: Any = None
    if strategy != "reference":
        if strategy == "checkpointing":
            model.activation_checkpointing_enable({"use_reentrant": False})
        step = FinetuneStepConfig(length=length, steps=steps + 1, batch_size=1, learning_rate=1e-5)
        options = FinetuneConfig(name="bench", positions_every=0)
        own = FinetuneModule(model, step, options=options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    before = reset_peak()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = (
            own.training_step(Rows(rows, torch.zeros_like(rows, dtype=torch.bool)), 0)
            if own is not None
            else model(rows, labels=rows, use_cache=False).loss
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    speed = length / statistics.median(seconds[1:])
    ceiling = peak_flops("32-true", device=model.device, tflops=None)
    return {
        "tokens_per_s": round(speed, 1),
        "mfu": round(speed * flops_per_token(model, length=length) / ceiling, 4),
        "peak_mib": round(peak() - before, 1),
    }


def in_a_process(name: str, strategy: str, *, length: int, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, strategy, "--length", str(length), "--steps", str(steps)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument(
        "--steps", type=int, default=3, help="steps measured after the first, of which the median counts"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "STRATEGY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.one:
        print(json.dumps(measure(*arguments.one, length=arguments.length, steps=arguments.steps)))
        return
    rows: list[dict[str, Any]] = read_json(arguments.results)["rows"] if arguments.results.is_file() else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    for name in arguments.models:
        for strategy in arguments.strategies:
            key = {"device": device, "model": name, "length": arguments.length, "strategy": strategy}
            if any(key.items() <= row.items() for row in rows):
                continue
            # One after the other, as close in time as can be, since other work on the machine slows both.
            reference = in_a_process(name, "reference", length=arguments.length, steps=arguments.steps)
            own = in_a_process(name, strategy, length=arguments.length, steps=arguments.steps)
            row = {
                **key,
                "tokens_per_s": own["tokens_per_s"],
                "reference_tokens_per_s": reference["tokens_per_s"],
                "mfu": own["mfu"],
                "peak_mib": own["peak_mib"],
                "reference_peak_mib": reference["peak_mib"],
            }
            rows.append(row)
            write_results(arguments.results, rows)
            print(row, flush=True)


if __name__ == "__main__":
    main()
