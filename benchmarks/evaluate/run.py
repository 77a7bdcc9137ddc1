"""Seconds and memory of a long document's losses (`make bench-evaluate`): in chunks with a KV cache, and in one pass.

Every row is a length: chunked prefill as evaluation reads it, beside a plain transformers forward of the whole text
with its own loss. Each of the two runs in a process of its own; ``peak_mib`` is the highest memory above that of the
loaded model, ``limit_mib`` 1.5 times the KV cache and one chunk's activations, ``cpu_seconds`` the processor's own
time, which other work on the machine hardly lengthens. Rows that are there are not measured again: an interrupted
benchmark resumes.

    python benchmarks/evaluate/run.py --lengths 1024 4096
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
from ropewalk.costs.shape import shape_of
from ropewalk.evaluate.perplexity import DocumentSet, document_losses
from ropewalk.files import read_json
from ropewalk.models.base import load_model
from ropewalk.rope import RopeScaling, extend, rotary_shape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "evaluate" / "results.json"
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
CHUNK = 2048
MIB = 2**20
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 32_000},
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32_000},
}  # fmt: skip


def load(name: str, device: str) -> Any:
    if name not in SHAPES:
        return load_model(str(ROOT / "models" / name)).to(device)  # type: ignore[arg-type]
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


def chunk_mib(model: Any) -> float:
    """A chunk's activations: queries, keys, values, the MLP's three parts and the stream in both norms' float32."""
    config = model.config
    floats = 4 * config.hidden_size + 3 * config.intermediate_size + 1024 / CHUNK * config.vocab_size
    return float(CHUNK * floats * 4 / MIB)


def measure(name: str, device: str, length: int, way: str) -> dict[str, Any]:
    model = load(name, device)
    shape = rotary_shape(model)
    scaling = RopeScaling((2.0,) * (shape.rotary_dim // 2), shape.original_length, max(length, shape.original_length))
    ids = text(length, model.config.vocab_size)

    def run(rows: torch.Tensor) -> float:
        if way == "chunked":
            return document_losses(model, scaling, DocumentSet("text", rows), [rows.shape[1]], chunk=CHUNK)[
                rows.shape[1]
            ].means[0]
        extend(model, scaling)
        with torch.no_grad():
            return float(model(rows.to(device), labels=rows.to(device)).loss)

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
    sizes = shape_of(model.config, name="")
    cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * model.dtype.itemsize * length / MIB
    found = {
        "seconds": seconds,
        "cpu_seconds": processor,
        "peak_mib": peak - before,
        "perplexity": math.exp(loss) if loss < 700 else None,
    }
    return {**found, "limit_mib": 1.5 * (cache + chunk_mib(model)), "kv_cache_mib": cache}


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
    parser.add_argument("--model", default="walker", choices=["walker", *SHAPES])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=4, metavar=("MODEL", "DEVICE", "LENGTH", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, device, length, way = options.one
        print(json.dumps(measure(name, device, int(length), way)))
        return
    rows = read_json(options.results)["rows"] if options.results.is_file() else []
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    for length in options.lengths:
        if any((row["device"], row["model"], row["length"]) == (device, options.model, length) for row in rows):
            continue
        ours = apart(options.model, options.device, str(length), "chunked")
        plain = apart(options.model, options.device, str(length), "plain")
        if ours is None:
            print(f"{options.model} at {length:,}: memory is not enough")
            continue
        row = {"device": device, "model": options.model, "length": length, "chunk": CHUNK, **ours}
        row |= {
            f"reference_{key}": None if plain is None else plain[key] for key in ("seconds", "cpu_seconds", "peak_mib")
        }
        row["reference_perplexity"] = None if plain is None else plain["perplexity"]
        rows.append(row)
        write_results(options.results, rows)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
