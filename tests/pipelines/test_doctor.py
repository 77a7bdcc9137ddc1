"""pipelines/doctor.py ends with a code that a continuous integration understands, and leaves a table and a plot."""

import json
from pathlib import Path

import pytest

from doctor.conftest import exported
from ropewalk.files import read_json, read_table
from workspace import run_script

__all__ = ["exported"]


def test_an_applied_scaling_ends_with_code_0(exported: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("doctor", f"doctor.model={exported}", "doctor.runtime=transformers", "output=out")
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1].startswith("transformers applies the scaling: losses agree to ")
    rows = read_table(scratch / "out" / "doctor.csv")
    assert [(row["name"], row["first"], row["last"]) for row in rows] == [
        ("transformers", 1, 255),
        ("transformers", 256, 511),
        ("transformers", 512, 1023),
    ]
    assert (scratch / "out" / "doctor.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert read_json(scratch / "out" / "metrics" / "doctor.json")["transformers"]["exit_code"] == 0


def test_a_dropped_scaling_ends_with_code_1(exported: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scratch / "model"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as raised:
        run_script("doctor", "doctor.model=model", "doctor.runtime=transformers", "output=out")
    assert raised.value.code == 1
    assert "transformers drops it: from position 512 on its loss equals" in capsys.readouterr().out
    assert (scratch / "out" / "doctor.csv").is_file()


def test_a_model_that_is_not_there_is_told_in_one_line(scratch: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^doctor: results/model is not there; run `dvc repro` up to the stage export, or give"
    ):
        run_script("doctor")
