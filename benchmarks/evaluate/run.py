"""Seconds and memory of a long document's losses (`make bench-evaluate`): layer by layer, with a KV cache, in one pass.

Every row is a length: reading layer by layer as evaluation does it, beside chunks with a KV cache of all layers, and
beside a plain transformers forward of the whole text with its own loss. Each of the three runs in a process of its own;
``peak_mib`` is the highest memory above that of the loaded model, and ``cpu_seconds`` the processor's own time, which
other work on the machine hardly lengthens. Rows that are there are not measured again: an interrupted benchmark
resumes. The plain forward is left out beyond ``--plain-up-to`` tokens.

    python benchmarks/evaluate/run.py --lengths 1024 4096
    python benchmarks/evaluate/run.py --model smollm2=PATH --dtype bfloat16 --lengths 32768 --plain-up-to 0
    python benchmarks/evaluate/run.py --device cuda --model llama-1b --lengths 131072 2097152

The text is Python's standard library; models of the shapes of a 1 B and a 7 B Llama have random weights.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.evaluate.perplexity import DocumentSet, document_losses
from ropewalk.files import read_json
from ropewalk.models.base import load_model
from ropewalk.models.loss import losses_of
from ropewalk.models.prefill import chunks, kv_cache
from ropewalk.rope import RopeScaling, extend, rotary_shape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "evaluate" / "results.json"
LENGTHS = (1024, 4096, 16_384, 65_536, 262_144, 524_288)
PLAIN_UP_TO = 65_536
CHUNK = 2048
MIB = 2**20
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 32_000},
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32_000},
}  # fmt: skip


def load(name: str, device: str, dtype: str) -> Any:
    if name not in SHAPES:
        path = name.partition("=")[2] or str(ROOT / "models" / name)
        return load_model(path, dtype=dtype, device=device)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPES[name])).to(torch.bfloat16)  # type: ignore[arg-type]
    return model.eval()


def text(length: int, vocabulary: int) -> torch.Tensor:
    """(1, length) token ids of the walker's tokenizer, the library's files in order of their names."""
    tokenizer: Any = AutoTokenizer.from_pretrained(ROOT / "models" / "walker")
    ids = [tokenizer.bos_token_id]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if len(ids) >= length:
            break
        if "site-packages" not in path.parts:
            ids += tokenizer(path.read_text(errors="replace"), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([ids[:length]]) % vocabulary


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) / 1024


def mean_with_cache(model: Any, rows: torch.Tensor) -> float:
    """Mean loss of all tokens but the first, read in chunks with a KV cache of all layers."""
    losses, start = [], 1
    for states in chunks(model, rows[:, :-1], kv_cache(model, rows.shape[1]), chunk=CHUNK):
        targets = rows[:, start : start + states.shape[1]]
        losses.append(losses_of(model, states, targets, "none").cpu().double())
        start += states.shape[1]
    return float(torch.cat(losses).mean())


def measure(name: str, device: str, dtype: str, length: int, way: str) -> dict[str, Any]:
    model = load(name, device, dtype)
    shape = rotary_shape(model)
    scaling = RopeScaling((2.0,) * (shape.rotary_dim // 2), shape.original_length, max(length, shape.original_length))
    ids = text(length, model.config.vocab_size)

    def run(rows: torch.Tensor) -> float:
        if way == "layerwise":
            documents = DocumentSet("text", rows)
            return document_losses(model, scaling, documents, [length := rows.shape[1]], chunk=CHUNK)[length].means[0]
        extend(model, scaling)
        rows = rows.to(device)
        with torch.no_grad():
            if way == "cached":
                return mean_with_cache(model, rows)
            return float(model(rows, labels=rows).loss)

    run(ids[:, :64])  # what is made once is no part of the figure
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    start, processor = time.perf_counter(), time.process_time()
    loss = run(ids)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = torch.cuda.max_memory_allocated() / MIB if device == "cuda" else resident("VmHWM")
    return {
        "seconds": seconds,
        "cpu_seconds": processor,
        "peak_mib": peak - before,
        "perplexity": math.exp(loss) if loss < 700 else None,
    }


def apart(*arguments: str) -> dict[str, Any] | None:
    """`measure` in a process of its own; None where memory was not enough."""
    process = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    if process.returncode != 0:
        if "out of memory" in process.stderr.lower() or process.returncode == -9:
            return None
        sys.exit(process.stderr)
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="walker", help=f"walker, NAME=PATH, or one of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--plain-up-to", type=int, default=PLAIN_UP_TO)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=5, metavar=("MODEL", "DEVICE", "DTYPE", "LENGTH", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, device, dtype, length, way = options.one
        print(json.dumps(measure(name, device, dtype, int(length), way)))
        return
    rows = read_json(options.results)["rows"] if options.results.is_file() else []
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    name = options.model.partition("=")[0]
    for length in options.lengths:
        about = {"device": device, "model": name, "dtype": options.dtype, "length": length}
        if any(about.items() <= row.items() for row in rows):
            continue
        row: dict[str, Any] = {**about, "chunk": CHUNK}
        for way in ("layerwise", "cached", *["plain"] * (length <= options.plain_up_to)):
            figures = apart(options.model, options.device, options.dtype, str(length), way)
            if figures is None:
                print(f"{name} at {length:,}, {way}: memory is not enough")
            row |= {f"{way}_{key}": value for key, value in (figures or {}).items()}
        if {"layerwise_peak_mib", "cached_peak_mib"} <= row.keys():
            row["memory_ratio"] = row["layerwise_peak_mib"] / row["cached_peak_mib"]
            row["time_ratio"] = row["layerwise_cpu_seconds"] / row["cached_cpu_seconds"]
        rows.append(row)
        write_results(options.results, rows)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
