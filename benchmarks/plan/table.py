"""The table of docs/cluster.md: what the plan says of models of 1, 8 and 70 B parameters on 1, 8 and 64 H100.

    python benchmarks/plan/table.py
    python benchmarks/plan/table.py --print

The shapes are those of Llama-3.2-1B, Llama-3-8B and Llama-3-70B with a window of 8,192 tokens. Nothing but the way, the
target and the devices is given; where that does not fit, the first settings count under which it does, those that keep
the target before others. `--print` writes the table of the results that are there, and stops.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.composition import composed
from ropewalk.files import read_json
from ropewalk.plan.costs import Planner
from ropewalk.plan.remedies import remedies, too_large

RESULTS = Path(__file__).with_name("table.json")
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
        best = min(options, key=lambda option: "extension.target" in option.values)
        costs, settings = list(best.costs), str(best)
    return {
        "fits": True,
        "settings": settings,
        "peak_gib": max(cost.memory.total for cost in costs) / 2**30,
        "hours": sum(cost.seconds for cost in costs) / 3600,
        "device_hours": sum(cost.device_hours for cost in costs),
    }


def printed(rows: list[dict[str, Any]]) -> str:
    """The table in markdown: a line for each model, way and target, a column for each number of devices.

    Letters stand for the settings that are listed below it.
    """
    lines = ["| model | `extension=` | target | 1 H100 | 8 | 64 |", "|---|---|---|---|---|---|"]
    cells = {(row["model"], row["way"], row["target"], row["devices"]): row for row in rows}
    settings = list(dict.fromkeys(row["settings"] for row in rows if row.get("settings")))
    letters = {setting: chr(ord("a") + number) for number, setting in enumerate(settings)}
    for model in MODELS:
        for way in WAYS:
            for target in TARGETS:
                texts = [_text(cells[model, way, target, count], letters) for count in DEVICES]
                lines.append(f"| {model} | {way} | {target // 1024:,}k | {' | '.join(texts)} |")
    return "\n".join([*lines, "", *(f"- {letter}: `{setting}`" for setting, letter in letters.items())])


def _text(row: dict[str, Any], letters: dict[str, str]) -> str:
    if not row["fits"]:
        return f"needs {row['needs_gib']:,.0f} GiB"
    hours = f"{row['hours']:.1f}" if row["hours"] < 10 else f"{row['hours']:,.0f}"
    letter = f" ({letters[row['settings']]})" if row["settings"] else ""
    return f"{math.ceil(row['peak_gib'])} GiB, {hours} h{letter}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the table, and stop")
    if parser.parse_args().print:
        print(printed(read_json(RESULTS)["rows"]))
        return
    rows: list[dict[str, Any]] = []
    cells = [(name, way, target, count) for name in MODELS for way in WAYS for target in TARGETS for count in DEVICES]
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in MODELS.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps({**LLAMA, **shape}))
        for name, way, target, count in tqdm(cells, desc="plans"):
            row = cell(Path(folder) / name, way, target, DEVICES[count])
            rows.append({"model": name, "way": way, "target": target, "devices": count, **row})
            tqdm.write(str(rows[-1]))
    write_results(RESULTS, rows)
    print(printed(rows))


if __name__ == "__main__":
    main()
