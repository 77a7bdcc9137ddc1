"""The whole pipeline as a user runs it: made once, again only where something changed, and resumed after a kill."""

import csv
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import safe_open

from processes import trials_done
from workspace import ROOT, commit, copy_project, environment, run, write_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

# Steps and trials enough to be killed between them.
SMALL = (
    "experiment=smoke",
    "search.trials=15",
    "finetune.second.steps=8",
    "finetune.checkpoint_every=2",
)
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def declared(stage: str) -> list[str]:
    items = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return [next(iter(item)) if isinstance(item, dict) else item for item in items]


def repro(project: Path, *arguments: str) -> str:
    completed = run(project, "dvc", "repro", *arguments)
    assert completed.returncode == 0, completed.stdout
    return completed.stdout


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def runs(project: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ropewalk")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def files(project: Path) -> list[Path]:
    return [path for path in sorted((project / "results").rglob("*")) if path.is_file()]


def check_whole(project: Path) -> None:
    """Whatever stands under a result's name reads to its end; what was being written has a leading dot."""
    for path in files(project):
        if any(part.startswith(".") for part in path.relative_to(project).parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")
            assert len({len(row) for row in csv.reader(path.open(newline=""))}) == 1
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:  # type: ignore[no-untyped-call]
                assert list(tensors.keys())


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after an undisturbed `dvc repro`."""
    project = copy_project(tmp_path_factory.mktemp("extension"))
    write_overrides(project, *SMALL)
    assert ran(repro(project)) == list(STAGES)
    commit(project)
    run(project, "git", "tag", "undisturbed")
    return project


def test_every_file_is_a_declared_result(extension: Path) -> None:
    outs = [extension / out for stage in STAGES for out in declared(stage)]
    assert all(out.exists() for out in outs)
    for path in files(extension):
        assert any(path == out or out in path.parents for out in outs), path
    assert not (extension / "mlruns").exists()
    kept = [path for path in (extension / "work").glob("*/*") if path.parent.name != "measured"]
    assert not kept, "state of stages that are done"
    check_whole(extension)


def test_every_stage_is_one_finished_run(extension: Path) -> None:
    all_runs = runs(extension)
    stages = [entry for entry in all_runs if "mlflow.parentRunId" not in entry.data.tags]
    assert sorted(entry.info.run_name for entry in stages) == sorted(set(STAGES) - {"compose"})
    assert {entry.info.status for entry in all_runs} == {"FINISHED"}
    for entry in stages:
        assert entry.data.tags["stage"] == entry.info.run_name
        assert re.fullmatch("[0-9a-f]{40}", entry.data.tags["commit"])
        assert re.fullmatch("[0-9a-f]{16}", entry.data.tags["config_hash"])
    searches = [entry for entry in all_runs if entry.data.tags.get("trial")]
    assert {entry.info.run_name.split()[0] for entry in searches} == {"search_first", "search_second", "recover"}


def test_a_second_repro_reruns_nothing_in_under_10_seconds(extension: Path) -> None:
    start = time.perf_counter()
    output = repro(extension)
    seconds = time.perf_counter() - start
    assert ran(output) == []
    assert seconds < 10


def test_a_sweep_on_the_results_leaves_them_as_they_are(extension: Path) -> None:
    completed = run(extension, "python", "pipelines/evaluate.py", "-m", "rope=pi,yarn,longrope", "evaluate=fast")
    assert completed.returncode == 0, completed.stdout
    tables = sorted((extension / "multirun").rglob("perplexity.csv"))
    methods = [{row["method"] for row in csv.DictReader(table.open(newline=""))} for table in tables]
    assert methods == [{"none", "pi"}, {"none", "yarn"}, {"none", "ours", "gradient"}]
    assert run(extension, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert not run(extension, "git", "status", "--porcelain").stdout
    (parent,) = [job for job in runs(extension) if job.info.run_name == "evaluate sweep"]
    children = [job for job in runs(extension) if job.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [job.info.run_name for job in children] == ["evaluate"] * 3


def test_several_processes_evaluate_as_a_single_one_does(extension: Path) -> None:
    several = ("parallel=ddp", "parallel.devices=2", "evaluate.cache=null")
    completed = run(extension, "python", "pipelines/evaluate.py", *several, "output=outputs/several", "inputs=results")
    assert completed.returncode == 0, completed.stdout
    for name in ("perplexity", "paired", "far_context", "passkey", "needles"):
        table = f"plots/{name}.csv"
        assert (extension / "outputs/several" / table).read_text() == (extension / "results" / table).read_text()
    assert not list((extension / "work").glob("evaluate/*"))


def test_the_ui_shows_the_runs(extension: Path) -> None:
    # As if installed, which the copy is not.
    ui = subprocess.Popen(
        ("make", "--old-file=.venv/installed", "ui"), cwd=extension, env=environment(extension),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = "http://127.0.0.1:5000"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert ui.poll() is None, "make ui ended; is port 5000 taken?"
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        experiment = MlflowClient(address).get_experiment_by_name("ropewalk")
        assert experiment is not None
        assert MlflowClient(address).search_runs([experiment.experiment_id])
    finally:
        os.killpg(ui.pid, signal.SIGTERM)
        ui.wait(30)


def test_a_change_reruns_only_what_reads_it(extension: Path) -> None:
    write_overrides(extension, *SMALL, "evaluate.passkey_trials=20")
    assert ran(repro(extension)) == ["compose", "prompts", "evaluate", "export", "report"]
    write_overrides(extension, *SMALL)
    assert ran(repro(extension)) == ["compose"], "the run cache holds what was there before"


def disturb(project: Path, ready: Callable[[str], bool], how: signal.Signals) -> str:
    """`dvc repro` whose whole process group gets a signal as soon as ``ready(output so far)``."""
    log = project.parent / f"{project.name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ("dvc", "repro"), cwd=project, env=environment(project), stdout=out, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 900
        while not ready(log.read_text()):
            assert process.poll() is None, f"ended too early: {log.read_text()}"
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        os.killpg(process.pid, how)
        assert process.wait(60) != 0
    # A process of the group may take a moment to die.
    time.sleep(1)
    check_whole(project)
    return log.read_text()


def begins(output: str, description: str) -> int:
    """Where the progress of something began: the count in its first line."""
    first = re.search(rf"{re.escape(description)}:.*?(\d+)/\d+ \[", output)
    assert first is not None, output
    return int(first[1])


@pytest.fixture(scope="module")
def disturbed(extension: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A clone whose every other stage was killed or interrupted, and what each `dvc repro` printed."""
    project = tmp_path_factory.mktemp("disturbed")
    cloned = run(project, "git", "clone", "--quiet", "--branch", "undisturbed", str(extension), ".")
    assert cloned.returncode == 0, cloned.stdout
    work, results = project / "work", project / "results"
    outputs = {}

    def kill(stage: str, ready: Callable[[str], bool], how: signal.Signals = signal.SIGKILL) -> None:
        outputs[stage] = disturb(project, ready, how)
        assert ran(outputs[stage])[-1] == stage
        assert not [out for out in declared(stage) if (project / out).exists()], f"half a result of {stage}"

    kill("prepare", lambda _: bool(list(results.glob(".tokens.writing-*"))))
    kill("search_first", lambda _: trials_done(project.glob("work/search_first/*/2048/study.db")) >= 4)
    kill("finetune_first", lambda output: "fine-tuning at 1,024:" in output, signal.SIGINT)
    kill("finetune_second", lambda _: bool(list(work.glob("finetune_second/*/second/last.ckpt"))))
    kill("evaluate", lambda output: "perplexity:" in output, signal.SIGINT)
    outputs["rest"] = repro(project)
    return project, outputs


def test_a_stage_that_was_killed_is_begun_again_and_no_other(disturbed: tuple[Path, dict[str, str]]) -> None:
    _, outputs = disturbed
    assert [ran(output)[0] for output in outputs.values()] == [
        "compose", "prepare", "search_first", "finetune_first", "finetune_second", "evaluate",
    ]  # fmt: skip
    assert ran(outputs["rest"]) == ["evaluate", "export", "report"]


def test_a_killed_search_resumes_with_the_trials_it_has(disturbed: tuple[Path, dict[str, str]]) -> None:
    _, outputs = disturbed
    assert begins(outputs["search_first"], "factors for 2,048 tokens, evolution") == 0
    # One of the four that were done when it was killed is the beginning.
    assert 3 <= begins(outputs["finetune_first"], "factors for 2,048 tokens, evolution") < 15


def test_a_killed_training_starts_from_its_checkpoint_in_the_same_run(
    disturbed: tuple[Path, dict[str, str]],
) -> None:
    project, _ = disturbed
    (training,) = [entry for entry in runs(project) if entry.info.run_name == "finetune_second"]
    assert training.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").get_metric_history(training.info.run_id, "loss")
    steps = [metric.step for metric in history]
    assert set(steps) == set(range(1, 9))
    # The steps before the checkpoint were paid once; at most those after it twice.
    assert steps.count(1) == steps.count(2) == 1


def test_an_interrupt_is_told_in_one_line_without_a_traceback(disturbed: tuple[Path, dict[str, str]]) -> None:
    _, outputs = disturbed
    for stage in ("finetune_first", "evaluate"):
        assert f"{stage}: interrupted; run the same command again to resume" in outputs[stage]
        assert "Traceback" not in outputs[stage]


def test_nothing_is_left_of_what_was_killed(disturbed: tuple[Path, dict[str, str]]) -> None:
    project, _ = disturbed
    assert not [path for path in files(project) if "writing" in path.name or ".tokens." in str(path)]
    kept = [path for path in (project / "work").glob("*/*") if path.parent.name != "measured"]
    assert not kept, "measured figures alone are kept when a stage is done"


def cached(project: Path, md5: str) -> object:
    """What DVC keeps of a file or folder, without the commit that factors and the model's card name as their maker.

    The two clones differ in that commit.
    """
    path = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    if md5.endswith(".dir"):
        return {entry["relpath"]: cached(project, entry["md5"]) for entry in json.loads(path.read_text())}
    return re.sub(rb"commit(\W+)[0-9a-f]{40}", rb"commit\1", path.read_bytes())


def without_seconds(text: Any) -> list[str]:
    """A search's table, whose last column they are, or the metrics of a search or the whole run."""
    lines = text.decode().splitlines()
    if lines[0].endswith(",seconds"):
        return [line.rpartition(",")[0] for line in lines]
    return [line for line in lines if not re.search('"(seconds|hours)"', line)]


def test_results_are_those_of_an_undisturbed_run(
    extension: Path, disturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    project, _ = disturbed
    # Other settings were tried in the undisturbed clone since; its commit says what was there before.
    lock = yaml.safe_load(run(extension, "git", "show", "undisturbed:dvc.lock").stdout)["stages"]
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    timed = (
        "metrics/finetune",
        "plots/finetune",
        "plots/control",
        "report.html",
        "plots/training.png",
    )
    for stage in STAGES:
        for output, two in zip(lock[stage]["outs"], stages[stage]["outs"], strict=True):
            if output["md5"] != two["md5"] and not any(part in output["path"] for part in timed):
                texts: list[Any] = [cached(place, out["md5"]) for place, out in ((extension, output), (project, two))]
                if re.search(r"(search_\w+|recover|report)\.(csv|json)$", output["path"]):
                    texts = [without_seconds(text) for text in texts]
                assert texts[0] == texts[1], output["path"]
