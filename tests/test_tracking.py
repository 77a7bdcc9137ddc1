"""Every stage, Hydra job and search is one MLflow run that can be found again."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus

from ropewalk import tracking
from ropewalk.composition import checked, register
from ropewalk.config import TrackingConfig
from ropewalk.files import write_json, write_table
from ropewalk.stage import Stage
from workspace import ROOT, commit, copy_project, environment, run

FINISHED, FAILED = RunStatus.to_string(RunStatus.FINISHED), RunStatus.to_string(RunStatus.FAILED)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose mlflow.db is made once, which takes seconds."""
    folder = tmp_path_factory.mktemp("tracking")
    commit(folder)
    return folder


@pytest.fixture
def stage(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(store)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", tracking.PARENT):
        monkeypatch.delenv(name, raising=False)
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", [f"output={tmp_path / 'out'}", f"work={tmp_path / 'work'}"])
    composed.tracking.experiment = tmp_path.name
    return Stage("search_first", checked(composed), ("search", "model"), inputs_hash="a")


def runs(folder: Path, experiment: str = "ropewalk") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def test_a_stage_is_one_run_with_its_commit_name_and_config_hash(stage: Stage, store: Path) -> None:
    with tracking.stage_run(stage):
        write_json(stage.output / "metrics" / "search_first.json", {"at_2048": {"trials": 3}, "note": "text"})
        tracking.log_file(stage.output / "metrics" / "search_first.json")
    (found,) = runs(store, stage.config.tracking.experiment)
    assert found.info.run_name == "search_first"
    assert found.info.status == FINISHED
    tags = found.data.tags
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=store, capture_output=True, text=True, check=True)
    assert (tags["commit"], tags["stage"]) == (head.stdout.strip(), "search_first")
    assert tags["config_hash"] == stage.config_hash
    assert found.data.params["search.trials"] == "200"
    assert found.data.params["seed"] == "0"
    assert "finetune.first.steps" not in found.data.params
    assert found.data.metrics["at_2048.trials"] == 3
    assert found.data.metrics["seconds"] >= 0


def test_the_commit_of_a_folder_is_that_of_its_repository(tmp_path: Path) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    head = commit(tmp_path / "project")
    assert tracking.commit_of(tmp_path / "project" / "src") == head
    assert tracking.commit_of(tmp_path) == "unknown"


def test_the_store_is_sqlite_and_artifacts_lie_below_mlartifacts(stage: Stage, store: Path) -> None:
    with tracking.stage_run(stage):
        assert mlflow.get_tracking_uri() == f"sqlite:///{store / 'mlflow.db'}"
        write_table(stage.output / "table.csv", [{"a": 1}])
        tracking.log_file(stage.output / "table.csv")
    (found,) = runs(store, stage.config.tracking.experiment)
    assert found.info.artifact_uri.startswith((store / "mlartifacts").as_uri())
    assert (store / "mlartifacts" / found.info.run_id / "artifacts" / "table.csv").read_text() == "a\n1\n"
    assert not (store / "mlruns").exists()


def test_the_corpus_is_logged_as_a_dataset_by_split(stage: Stage, store: Path) -> None:
    own = {"documents": 3, "tokens": 500, "longest": 300}
    card = {split: {**own, "hash": f"{number}" * 64} for number, split in enumerate(("train", "search", "test"))}
    with tracking.stage_run(stage):
        tracking.log_dataset("jsonl", source="data/*.jsonl", card=card)
    (found,) = runs(store, stage.config.tracking.experiment)
    logged = {one.dataset.name: one for one in found.inputs.dataset_inputs}
    assert set(logged) == {"jsonl train", "jsonl search", "jsonl test"}
    assert logged["jsonl search"].dataset.digest == "1" * 16
    assert "data/*.jsonl" in logged["jsonl search"].dataset.source
    tags = {tag.key: tag.value for tag in logged["jsonl search"].tags}
    assert tags["mlflow.data.context"] == "search"
    assert (tags["documents"], tags["tokens"], tags["hash"]) == ("3", "500", "1" * 64)


def test_the_store_is_the_one_that_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.store_uri(TrackingConfig()) == "http://127.0.0.1:5000"
    assert tracking.store_uri(TrackingConfig(uri="http://server")) == "http://server"


def test_a_stage_that_goes_on_after_a_kill_goes_on_in_its_old_run(stage: Stage, store: Path) -> None:
    with suppress(KeyboardInterrupt), tracking.stage_run(stage):
        tracking.log_series("best", [(0, 3.0)])
        raise KeyboardInterrupt
    (first,) = runs(store, stage.config.tracking.experiment)
    assert first.info.status == FAILED
    with tracking.stage_run(stage):
        tracking.log_series("best", [(1, 2.0)])
    (second,) = runs(store, stage.config.tracking.experiment)
    assert (second.info.run_id, second.info.status) == (first.info.run_id, FINISHED)
    assert second.data.metrics["best"] == 2.0
    with tracking.stage_run(replace(stage, inputs_hash="b")):
        pass
    assert len(runs(store, stage.config.tracking.experiment)) == 2


def test_a_run_that_is_no_longer_in_the_store_is_begun_anew(stage: Stage, store: Path) -> None:
    (stage.state / "mlflow_run_id").write_text("0" * 32)
    with tracking.stage_run(stage):
        pass
    (found,) = runs(store, stage.config.tracking.experiment)
    assert found.info.run_id != "0" * 32
    assert (stage.state / "mlflow_run_id").read_text() == found.info.run_id


def test_a_series_keeps_every_point(stage: Stage, store: Path) -> None:
    points = [(step, step / 2) for step in range(1001)]
    with tracking.stage_run(stage):
        tracking.log_series("loss", points)
    (found,) = runs(store, stage.config.tracking.experiment)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == points


def test_a_search_is_a_series_by_generation_one_table_and_its_best_trials_as_child_runs(
    stage: Stage, store: Path
) -> None:
    rows = [
        {
            "phase": "gradient",
            "length": 2048,
            "trial": step,
            "generation": -1,
            "loss": 3 - step,
            "best": 3 - step,
            "best_so_far": None,
            "tokens": 0,
        }
        for step in range(2)
    ]
    losses = [2.0, 1.5, 1.9, 1.2]
    rows += [
        {
            "phase": "evolution",
            "length": 2048,
            "trial": trial,
            "generation": trial // 2,
            "loss": loss,
            "best": min(losses[: trial + 1]),
            "best_so_far": min(losses[: trial + 1]),
            "tokens": 1000 * trial,
            "lambda_00": 1.0,
            "lambda_01": 1.5 + trial,
            "n_hat": 0,
            "attention_factor": 1.1,
        }
        for trial, loss in enumerate(losses)
    ]
    table = stage.output / "search_first.csv"
    write_table(table, rows)
    with tracking.stage_run(stage):
        tracking.log_search("search_first", rows, table, best=2)
    found = runs(store, stage.config.tracking.experiment)
    (parent,) = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    children = [one for one in found if one is not parent]
    assert {one.data.tags["mlflow.parentRunId"] for one in children} == {parent.info.run_id}
    assert {one.data.tags["trial"]: one.data.metrics["loss"] for one in children} == {"3": 1.2, "1": 1.5}
    assert all({"n_hat", "attention_factor"} <= one.data.metrics.keys() for one in children)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (best,) = [one for one in children if one.data.tags["trial"] == "3"]
    profile = client.get_metric_history(best.info.run_id, "rescale_factor")
    assert [(metric.step, metric.value) for metric in profile] == [(0, 1.0), (1, 4.5)]
    series = client.get_metric_history(parent.info.run_id, "evolution_best_loss_2048")
    assert [(metric.step, metric.value) for metric in series] == [(0, 1.5), (1, 1.2)]
    mean = client.get_metric_history(parent.info.run_id, "evolution_mean_loss_2048")
    assert [(metric.step, metric.value) for metric in mean] == [(0, 1.75), (1, pytest.approx(1.55))]
    paid = client.get_metric_history(parent.info.run_id, "best_loss_by_tokens_2048")
    assert [(metric.step, metric.value) for metric in paid] == [(0, 2.0), (1, 1.5), (2, 1.5), (3, 1.2)]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"search_first.csv", "convergence.png", "factors.png"}


def test_an_evaluation_has_a_run_per_model_and_method_whose_metrics_share_their_names_and_steps(
    stage: Stage, store: Path
) -> None:
    row = {"variant": "s", "documents": 2, "tokens": 9, "protocol": "one pass"}
    rows = [
        row | {"model": model, "method": method, "length": length, "document_set": documents, "perplexity": value}
        for model in ("base", "finetuned")
        for method in ("pi", "yarn")
        for length, documents, value in ((64, "all", 3.0), (64, "all", 2.5), (256, "all", 2.0), (512, "long", 4.0))
    ] + [row | {"model": "base", "method": "none", "length": 64, "document_set": "all", "perplexity": float("inf")}]
    keys = [
        {"model": "base", "method": "pi", "length": 64, "depth": depth, "trials": 4, "correct": 1} for depth in (0, 1)
    ]
    card = {"corpus": "words", "test": {"documents": 2, "tokens": 99, "longest": 60, "hash": "0123456789abcdef0"}}
    weights = {"base": "a" * 64, "finetuned": "b" * 64}
    for _ in range(2):
        with tracking.stage_run(stage):
            tracking.log_comparison(rows, keys, name="Tiny/model: 1", weights=weights, card=card)
    found = [one for one in runs(store, stage.config.tracking.experiment) if "method" in one.data.params]
    assert sorted({str(one.info.run_name) for one in found}) == [
        "base none", "base pi", "base yarn", "finetuned pi", "finetuned yarn",
    ]  # fmt: skip
    assert len(found) == 10
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (pi, _) = [one for one in found if one.info.run_name == "base pi"]
    assert (pi.data.params["model"], pi.data.params["method"], pi.data.params["lengths"]) == (
        "base",
        "pi",
        "64, 256, 512",
    )
    series = {
        name: [(point.step, point.value) for point in client.get_metric_history(pi.info.run_id, name)]
        for name in pi.data.metrics
    }
    assert series == {
        "perplexity": [(64, 2.5), (256, 2.0)], "perplexity_long": [(512, 4.0)], "passkey_accuracy": [(64, 0.25)],
    }  # fmt: skip
    (dataset,) = pi.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("words test", "0123456789abcdef")
    # A search of runs leaves their models out.
    whole = [client.get_run(one.info.run_id) for one in found]
    linked = {one.inputs.model_inputs[0].model_id for one in whole}
    assert len(linked) == 2, "the same weights are the same model in every evaluation"
    models = client.search_logged_models([pi.info.experiment_id])
    assert {(model.name, model.params["weights_sha256"]) for model in models} == {
        ("Tiny-model-1-base", "a" * 64), ("Tiny-model-1-finetuned", "b" * 64),
    }  # fmt: skip


def test_lightning_writes_into_the_run_of_its_stage(stage: Stage, store: Path) -> None:
    with tracking.stage_run(stage):
        logger = tracking.lightning_logger()
        logger.log_metrics({"loss": 1.5}, step=3)
        logger.finalize("success")
    (found,) = runs(store, stage.config.tracking.experiment)
    assert found.data.metrics["loss"] == 1.5


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("sweep"))


def test_two_sweeps_at_once_do_not_meet(project: Path) -> None:
    before = run(project, "dvc", "status").stdout
    command = (sys.executable, "pipelines/base.py", "-m", "model.dtype=float32,bfloat16")
    sweeps = [
        subprocess.Popen(
            command, cwd=project, env=environment(project), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    outputs = [sweep.communicate(timeout=300)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    found = runs(project)
    parents = {one.info.run_id: one for one in found if one.info.run_name == "base sweep"}
    assert len(parents) == 2
    assert all(one.data.tags["overrides"] == "model.dtype=float32,bfloat16" for one in parents.values())
    for parent in parents:
        children = [one for one in found if one.data.tags.get("mlflow.parentRunId") == parent]
        assert sorted(one.data.params["model.dtype"] for one in children) == ["bfloat16", "float32"]
    assert {one.info.status for one in found} == {FINISHED}
    assert len(found) == 6
    written = {path.parent for path in project.rglob("base.json") if path.parent.name != "metrics"}
    assert len(written) == 4
    assert all(folder.is_relative_to(project / "multirun") for folder in written)
    for gone in ("results", "outputs", "mlruns", "work"):
        assert not (project / gone).exists()
    assert run(project, "dvc", "status").stdout == before
    assert not run(project, "git", "status", "--porcelain").stdout


def test_a_sweep_with_a_job_that_fails_is_a_failed_run(project: Path) -> None:
    found = run(project, sys.executable, "pipelines/base.py", "-m", "model.path=gone", "tracking.experiment=failing")
    assert found.returncode == 1
    assert found.stdout.strip().splitlines()[-1] == (
        "base: model.path gone is not there; give a folder with a transformers checkpoint"
    )
    assert {one.info.status for one in runs(project, "failing")} == {FAILED}
    assert len(runs(project, "failing")) == 2
