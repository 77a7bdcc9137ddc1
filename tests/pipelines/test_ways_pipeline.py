"""Each way of extending through `dvc repro` from two lines, the model and its text (long: test_pipeline.py)."""

import re
import time
from pathlib import Path

import pytest

from ropewalk import load_extended
from ropewalk.files import read_json, read_table
from ropewalk.ways import LEFT_OUT
from tiny_inputs import BUDGETS, MODEL, TEXTS, write_inputs
from workspace import copy_project, run, write_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TRAINING = (
    "extension.recover.gradient_steps=[2]",
    "finetune.first.steps=2",
    "finetune.first.batch_size=2",
    "finetune.second.steps=2",
    "finetune.second.batch_size=2",
)


@pytest.mark.parametrize("way", ["untrained", "trained"])
def test_a_way_leaves_out_what_it_has_no_work_for_and_says_what_was_done(tmp_path: Path, way: str) -> None:
    project = copy_project(tmp_path / "project")
    write_inputs(project)
    training = TRAINING if way == "trained" else ()
    write_overrides(project, f"model.path={MODEL}", f"corpus.path={TEXTS}", f"extension={way}", *BUDGETS, *training)
    done = run(project, "dvc", "repro")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"(\w+): nothing to do with", done.stdout) == [
        stage for stage in re.findall(r"Running stage '(\w+)'", done.stdout) if stage in LEFT_OUT[way]
    ]
    assert len(re.findall(r"nothing to do with", done.stdout)) == len(LEFT_OUT[way])

    results = project / "results"
    rows = read_table(results / "plots" / "perplexity.csv")
    models = {"base", "finetuned", "control"} if way == "trained" else {"base"}
    assert {row["model"] for row in rows} == models
    extended = "finetuned" if way == "trained" else "base"
    lengths = {row["length"] for row in rows if (row["model"], row["method"]) == (extended, "ours")}
    assert lengths == {64, 128, 256, 512, 1024}
    claims = [check["claim"] for check in read_json(results / "checks.json")]
    assert claims
    assert any(claim.startswith("Fine-tuned") for claim in claims) == (way == "trained")
    assert not any("1,024" in claim for claim in claims), "beyond the target nothing is claimed"

    page = (results / "report.html").read_text()
    assert ("no weight was changed" in page) == (way == "untrained")
    assert ("Fine-tuning" in page) == (way == "trained")
    assert "is not there; stage" not in page
    assert "has no rows; stage" not in page
    card = (results / "model" / "README.md").read_text()
    assert ("No weight was changed" in card) == (way == "untrained")
    assert load_extended(results / "model").config.max_position_embeddings == 512
    summary = run(project, "python", "-m", "ropewalk.evaluate.summary")
    assert ("fine-tuned model" in summary.stdout) == (way == "trained")

    start = time.monotonic()
    again = run(project, "dvc", "repro", "--force", "--single-item", LEFT_OUT[way][0])
    assert again.returncode == 0, again.stdout
    assert time.monotonic() - start < 20
