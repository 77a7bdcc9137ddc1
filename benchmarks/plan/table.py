"""The table of docs/cluster.md: what the plan says of models of 1, 8 and 70 B parameters on one, 8 and 64 H100.

    python benchmarks/plan/table.py

The shapes are those of Llama-3.2-1B, Llama-3-8B and Llama-3-70B with a window of 8,192 tokens. Nothing but the target
and the number of devices is given; where that does not fit, the first settings count under which it does.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.composition import composed
from ropewalk.plan.costs import Cost, Planner
from ropewalk.plan.remedies import remedies, too_large

WINDOW = 8192
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "hidden_act": "silu",
    "max_position_embeddings": WINDOW, "rope_theta": 500_000.0, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "head_dim": 64, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
}  # fmt: skip
TARGETS = (32_768, 131_072, 524_288, 2_097_152)
DEVICES: dict[int, tuple[str, ...]] = {
    1: (),
    8: ("parallel=fsdp", "parallel.devices=8", "search.workers=8"),
    64: ("parallel=fsdp", "parallel.devices=8", "parallel.nodes=8", "search.workers=8"),
}
WAYS = ("untrained", "trained")


def cell(path: Path, way: str, target: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Peak memory in GiB and hours under the plan's own settings, or under the first that fit."""
    given = [f"model.path={path}", f"extension={way}", f"extension.target={target}", "plan=h100", *overrides]
    config = composed([*given, "output=out", "work=work"])
    planner = Planner(config)
    costs, settings = planner.costs(config), ""
    if too_large(costs, planner.device):
        options, least = remedies(planner, config)
        if not options:
            return {"fits": False, "needs_gib": least / 2**30}
        costs, settings = list(options[0].costs), str(options[0])
    return {"fits": True, "settings": settings, **figures(costs)}


def figures(costs: list[Cost]) -> dict[str, float]:
    return {
        "peak_gib": max(cost.memory.total for cost in costs) / 2**30,
        "hours": sum(cost.seconds for cost in costs) / 3600,
        "device_hours": sum(cost.device_hours for cost in costs),
    }


def main() -> None:
    rows = []
    cells = [(name, way, target, count) for name in MODELS for way in WAYS for target in TARGETS for count in DEVICES]
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in MODELS.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps({**LLAMA, **shape}))
        for name, way, target, count in tqdm(cells, desc="plans"):
            row = cell(Path(folder) / name, way, target, DEVICES[count])
            rows.append({"model": name, "way": way, "target": target, "devices": count, **row})
            tqdm.write(str(rows[-1]))
    write_results(Path(__file__).with_name("table.json"), rows)


if __name__ == "__main__":
    main()
