"""pipelines/extend.py from two overrides to an export, killed and resumed, and as a sweep over targets."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from processes import trials_done
from ropewalk import load_extended
from ropewalk.files import read_json
from tiny_inputs import BUDGETS, MODEL, TEXTS, write_inputs
from workspace import ROOT, environment

SCRIPT = str(ROOT / "pipelines" / "extend.py")
GIVEN = (f"model.path={MODEL}", f"corpus.path={TEXTS}", "extension.target=256", *BUDGETS)


def extend(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment(ROOT), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(folder: Path, *arguments: str) -> str:
    process = extend(folder, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def results(folder: Path, target: int = 256) -> Path:
    (run_folder,) = (folder / "outputs" / "extend").glob(f"{MODEL}-{target}-*")
    return run_folder


def stages(output: str) -> list[str]:
    return re.findall(r"^\[\d/7\] (.*)$", output, re.MULTILINE)


def test_a_mistake_is_one_line(scratch: Path) -> None:
    process = extend(scratch, "extension.target=100", "extension.way=never")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.startswith("extend: configuration: extension.way must be one of untrained, trained, long")
    assert len(output.splitlines()) == 1
    assert not (scratch / "outputs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_over_targets_extends_to_each_and_resumes(scratch: Path) -> None:
    write_inputs(scratch)
    sweep = ("-m", *GIVEN[:2], "extension.target=128,256", *BUDGETS)
    output = finished(scratch, *sweep)
    for target in (128, 256):
        folder = results(scratch, target)
        model = load_extended(folder / "model")
        assert model.config.max_position_embeddings == target
        assert "No weight was changed" in (folder / "model" / "README.md").read_text()
        assert (folder / "report.html").is_file()
        assert read_json(folder / "metrics" / "evaluate.json")["perplexity"].keys() == {"base"}
    assert stages(output) == ["prepare", "base", "prompts", "search_first", "evaluate", "export", "report"] * 2
    *_, first, second = output.splitlines()
    assert first.startswith("extension.target=128")
    assert first.endswith(str(results(scratch, 128).relative_to(scratch)))
    assert second.startswith("extension.target=256")

    client = MlflowClient(f"sqlite:///{scratch / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ropewalk")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    jobs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [job.info.run_name for job in jobs] == ["extend", "extend"]
    for job in jobs:
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == job.info.run_id]
        assert sorted(run.info.run_name for run in children) == sorted(stages(output)[:7])
        assert "perplexity_at_target" in job.data.metrics
    assert {run.info.status for run in runs} == {"FINISHED"}

    # The whole job of a sweep is also that of the same target alone, and what is done is not done again.
    again = finished(scratch, *GIVEN)
    assert stages(again) == []
    assert "Passkey accuracy, base model" in again


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_extension_that_was_killed_amid_its_search_goes_on_there(scratch: Path) -> None:
    write_inputs(scratch)
    process = extend(scratch, *GIVEN, "search.trials=40")
    deadline = time.monotonic() + 600
    while trials_done(scratch.glob("outputs/extend/*/work/search_first/*/256/study.db")) < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    output = finished(scratch, *GIVEN, "search.trials=40")
    assert stages(output)[:4] == [
        "prepare, done before", "base, done before", "prompts, done before", "search_first",
    ]  # fmt: skip
    progress = re.search(r"factors for 256 tokens, evolution:.*?(\d+)/40 \[", output)
    assert progress is not None
    assert int(progress[1]) >= 3
    undisturbed = scratch / "undisturbed"
    undisturbed.mkdir()
    write_inputs(undisturbed)
    for source in (scratch / TEXTS).iterdir():
        # The fingerprint of a text knows when it was changed.
        os.utime(undisturbed / TEXTS / source.name, ns=(source.stat().st_mtime_ns, source.stat().st_mtime_ns))
    finished(undisturbed, *GIVEN, "search.trials=40")
    for name in ("factors/recovered.json", "plots/perplexity.csv", "plots/passkey.csv"):
        assert (results(undisturbed) / name).read_text() == (results(scratch) / name).read_text()
