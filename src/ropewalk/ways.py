"""The ways of an extension (extension.way): which stages each leaves out, and what those write in place of their work.

A stage that is left out takes about a second, so nothing here may import torch, transformers or MLflow.
"""

from pathlib import Path
from typing import Any

from ropewalk.files import read_json, write_json, write_table, writing
from ropewalk.rope import LengthSwitch, RopeScaling

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "untrained": ("finetune_first", "finetune_second", "finetune_baselines", "search_second", "recover"),
    "trained": ("search_second",),
    "long": (),
}
"""Stages that have nothing to do, by way."""
_EMPTY: dict[str, tuple[str, ...]] = {
    "finetune_first": ("checkpoints/finetune_first", "plots/finetune_first.csv"),
    "finetune_second": (
        "checkpoints/finetune_second",
        "checkpoints/control",
        "plots/finetune_second.csv",
        "plots/control.csv",
    ),
    "finetune_baselines": ("checkpoints/baselines", "plots/finetune_baselines.csv"),
    "search_second": ("plots/search_second.csv",),
    "recover": ("plots/recover.csv",),
}
"""Tables without rows and folders without a model that such a stage writes, since DVC wants every out of a stage."""


def is_left_out(stage: str, way: str) -> bool:
    """Whether the stage has nothing to do; where an app's configuration leaves the way open, no stage is left out."""
    return stage in LEFT_OUT.get(way, ())


def leave_out(stage: str, *, inputs: Path, output: Path) -> None:
    """Write the results of a stage that is left out: empty ones, and factors as the earlier stages made them.

    Args:
        inputs: folder with the results of earlier stages.
        output: folder of the stage's own results.
    """
    for name in _EMPTY[stage]:
        path = output / name
        if path.suffix == ".csv":
            write_table(path, [])
        else:
            with writing(path) as aside:  # which replaces the model of another way
                aside.mkdir()
                # DVC warns of an empty folder again and again.
                (aside / "left_out.txt").write_text(f"The stage {stage} had nothing to do.\n")
    for name, values in _factors(stage, inputs).items():
        write_json(output / "factors" / name, values)
    write_json(output / "metrics" / f"{stage}.json", {})


def _factors(stage: str, inputs: Path) -> dict[str, Any]:
    """Values of the factors files (`ropewalk.models.factors`) by name."""
    first = inputs / "factors" / "first.json"
    if stage == "search_second":
        return {"second.json": read_json(first), "second_by_length.json": {"switch": []}}
    if stage == "recover":
        return {"recovered.json": _unrecovered(read_json(first), read_json(inputs / "base.json"))}
    return {}


def _unrecovered(first: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The base model's own scaling up to its window, and beyond it the searched factors ``first``.

    The doublings between have interpolated factors. The query scales are those of ``first`` at every length, since an
    export folds one set of them into the weights.
    """
    provenance, shorter = first.pop("provenance", None), first.pop("shorter", [])
    if "start" in base:
        base_switch = LengthSwitch.from_dict(base["start"])
    else:
        window, ones = base["original_length"], (1.0,) * len(first["factors"])
        base_switch = LengthSwitch(((window, RopeScaling(ones, window, window, method="none")),))
    scales = {"query_scales": first["query_scales"]} if first.get("query_scales") else {}
    window_entries = [{**entry, "scaling": entry["scaling"] | scales} for entry in base_switch.to_dict()["switch"]]
    searched = [{"up_to_length": scaling["target_length"], "scaling": scaling} for scaling in (*shorter, first)]
    beyond = LengthSwitch.from_dict({"switch": [window_entries[-1], *searched]}).with_doublings.to_dict()["switch"]
    beyond[-1]["provenance"] = provenance
    return {"switch": [*window_entries[:-1], *beyond]}
