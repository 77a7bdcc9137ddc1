"""The stage prompts, and an evaluation that reads what it wrote and draws what it did not."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.evaluate.prompt_sets import INDEX, Draw
from ropewalk.evaluate.prompts import Prompts
from ropewalk.files import read_json, read_table
from tiny_pipeline import FIRST, OVERRIDES, evaluate_inputs
from workspace import run_script

# One length at which a prompt of byte tokens has room.
TASKS = (
    "evaluate.needles=[single]",
    f"evaluate.needle_lengths=[{FIRST}]",
    "evaluate.needle_trials=2",
    "evaluate.needle_depths=2",
    "rope=longrope",
)


@pytest.fixture
def inputs(scratch: Path) -> Path:
    folder = evaluate_inputs(scratch / "results")
    run_script("prompts", *OVERRIDES, *TASKS, f"output={folder}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_stage_writes_the_same_bytes_each_time_and_counts_them(inputs: Path) -> None:
    before = contents(inputs / "prompts")
    about = read_json(inputs / "prompts" / INDEX)
    assert [(entry["family"], entry["length"], entry["prompts"]) for entry in about["sets"]] == [
        ("passkey", FIRST, 2), ("passkey_varied", FIRST, 2), ("single", FIRST, 2),
    ]  # fmt: skip
    assert read_json(inputs / "metrics" / "prompts.json")["prompts"] == 6
    run_script("prompts", *OVERRIDES, *TASKS, f"output={inputs}")
    assert contents(inputs / "prompts") == before
    run_script("prompts", *OVERRIDES, *TASKS, f"output={inputs}", "seed=1")
    assert contents(inputs / "prompts") != before


def test_evaluate_reads_the_prompts_and_draws_what_was_added(
    inputs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, drawn = contents(inputs / "prompts"), list[Draw]()
    original = Draw.prompts

    def noted(draw: Draw, *arguments: Any) -> Prompts:
        drawn.append(draw)
        return original(draw, *arguments)

    monkeypatch.setattr(Draw, "prompts", noted)
    run_script("evaluate", *OVERRIDES, *TASKS, "output=out")
    assert drawn == []
    hashes = {entry["hash"] for entry in read_json(inputs / "prompts" / INDEX)["sets"]}
    figures = [read_json(path)["about"] for path in (scratch / "work" / "measured").rglob("*.json")]
    assert {about["prompts"] for about in figures if "prompts" in about} == hashes

    run_script("evaluate", *OVERRIDES, *TASKS, f"evaluate.passkey_lengths=[{FIRST},600]", "output=more")
    assert drawn == [Draw("passkey", 600, 10, 2, 0), Draw("passkey_varied", 600, 10, 2, 0)]
    assert contents(inputs / "prompts") == before
    first, second = (read_table(scratch / out / "plots" / "passkey.csv") for out in ("out", "more"))
    assert second[: len(first)] == first
    assert {row["length"] for row in second} == {FIRST, 600}
