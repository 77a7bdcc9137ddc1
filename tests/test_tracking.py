"""Every stage, Hydra job and search is one MLflow run that can be found again."""

import subprocess
import sys
import threading
import time
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
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.verdict import Verdict
from ropewalk.files import read_json, write_json, write_table
from ropewalk.report.mlflow_runs import log_comparison, log_search
from ropewalk.stage import Stage, tracked
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
    # Where the demo's model lies, from whose window values follow.
    monkeypatch.chdir(ROOT)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", tracking.PARENT):
        monkeypatch.delenv(name, raising=False)
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", ["experiment=demo", f"output={tmp_path / 'out'}", f"work={tmp_path / 'work'}"])
    composed.tracking.experiment = tmp_path.name
    config = checked(composed)
    monkeypatch.chdir(store)
    return Stage("search_first", config, ("search", "model"), inputs_hash="a")


def runs(folder: Path, experiment: str = "ropewalk") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    return list(client.search_runs([known.experiment_id]))


def test_a_stage_is_one_run_with_its_commit_name_and_config_hash(stage: Stage, store: Path) -> None:
    with tracked(stage):
        write_json(stage.output / "metrics" / "search_first.json", {"at_2048": {"trials": 3}, "note": "text"})
        tracking.log_file(stage.output / "metrics" / "search_first.json")
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert tracked_run.info.run_name == "search_first"
    assert tracked_run.info.status == FINISHED
    tags = tracked_run.data.tags
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=store, capture_output=True, text=True, check=True)
    assert (tags["commit"], tags["stage"]) == (head.stdout.strip(), "search_first")
    assert tags["config_hash"] == stage.config_hash
    assert tracked_run.data.params["search.trials"] == "104"
    assert tracked_run.data.params["seed"] == "0"
    assert "finetune.first.steps" not in tracked_run.data.params
    assert tracked_run.data.metrics["at_2048.trials"] == 3
    assert tracked_run.data.metrics["seconds"] >= 0


def test_the_commit_of_a_folder_is_that_of_its_repository(tmp_path: Path) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    head = commit(tmp_path / "project")
    assert tracking.commit_of(tmp_path / "project" / "src") == head
    assert tracking.commit_of(tmp_path) == "unknown"


def test_the_store_is_sqlite_and_artifacts_lie_below_mlartifacts(stage: Stage, store: Path) -> None:
    with tracked(stage):
        assert mlflow.get_tracking_uri() == f"sqlite:///{store / 'mlflow.db'}"
        write_table(stage.output / "table.csv", [{"a": 1}])
        tracking.log_file(stage.output / "table.csv")
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert tracked_run.info.artifact_uri.startswith((store / "mlartifacts").as_uri())
    assert (store / "mlartifacts" / tracked_run.info.run_id / "artifacts" / "table.csv").read_text() == "a\n1\n"
    assert not (store / "mlruns").exists()


def test_an_experiment_is_of_the_kind_that_trains_models_also_where_it_was_made_before(
    stage: Stage, store: Path
) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    for name, tags in (("new", None), ("old", {}), ("other", {"mlflow.experimentKind": "finetuning"})):
        config = TrackingConfig(experiment=f"{stage.config.tracking.experiment} {name}")
        if tags is not None:
            client.create_experiment(config.experiment, tags=tags)
        experiment = client.get_experiment(tracking.open_experiment(config))
        kind = "finetuning" if tags else "custom_model_development"
        assert experiment.tags["mlflow.experimentKind"] == kind, name


def test_a_run_says_which_of_its_parameters_followed_and_why(stage: Stage, store: Path) -> None:
    stage.config.followed.clear()
    stage.config.followed.update({"search.documents": "enough tokens", "finetune.recall_share": "not read here"})
    with tracked(stage):
        pass
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert tracked_run.data.tags["followed"] == "search.documents"
    assert tracked_run.data.tags["way"] == "long"
    artifacts = store / "mlartifacts" / tracked_run.info.run_id / "artifacts"
    assert read_json(artifacts / "followed.json") == {"search.documents": "enough tokens"}


@pytest.mark.parametrize(("interval", "sampled"), [("0.05", True), ("30", False)])
def test_a_stage_that_outlasts_a_sample_logs_how_busy_the_machine_was(
    stage: Stage, store: Path, monkeypatch: pytest.MonkeyPatch, interval: str, sampled: bool
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", interval)
    with tracked(stage):
        time.sleep(0.5)
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert ("system/cpu_utilization_percentage" in tracked_run.data.metrics) == sampled
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_the_corpus_is_logged_as_a_dataset_by_split(stage: Stage, store: Path) -> None:
    counts = {"documents": 3, "tokens": 500, "longest": 300}
    card = {split: {**counts, "hash": f"{number}" * 64} for number, split in enumerate(("train", "search", "test"))}
    with tracked(stage):
        tracking.log_dataset("jsonl", source="data/*.jsonl", card=card)
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    logged = {dataset_input.dataset.name: dataset_input for dataset_input in tracked_run.inputs.dataset_inputs}
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


def test_a_store_that_cannot_be_used_is_named(stage: Stage, store: Path) -> None:
    stage.config.tracking.uri = "nonsense://x"
    with pytest.raises(OSError, match=r"tracking\.uri nonsense://x cannot be used: .*unsupported URI"), tracked(stage):
        pass


def test_a_stage_that_resumes_after_a_kill_resumes_in_its_old_run(stage: Stage, store: Path) -> None:
    with suppress(KeyboardInterrupt), tracked(stage):
        tracking.log_series("best", [(0, 3.0)])
        raise KeyboardInterrupt
    (first,) = runs(store, stage.config.tracking.experiment)
    assert first.info.status == FAILED
    with tracked(stage):
        tracking.log_series("best", [(1, 2.0)])
    (second,) = runs(store, stage.config.tracking.experiment)
    assert (second.info.run_id, second.info.status) == (first.info.run_id, FINISHED)
    assert second.data.metrics["best"] == 2.0
    with tracked(replace(stage, inputs_hash="b")):
        pass
    assert len(runs(store, stage.config.tracking.experiment)) == 2


def test_a_run_that_is_no_longer_in_the_store_is_begun_anew(stage: Stage, store: Path) -> None:
    (stage.state / "mlflow_run_id").write_text("0" * 32)
    with tracked(stage):
        pass
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert tracked_run.info.run_id != "0" * 32
    assert (stage.state / "mlflow_run_id").read_text() == tracked_run.info.run_id


def test_a_run_that_was_killed_before_its_parameters_were_logged_has_them_after_a_retry(
    stage: Stage, store: Path
) -> None:
    with tracked(stage):
        experiment = mlflow.active_run().info.experiment_id
    client = MlflowClient()
    killed = client.create_run(experiment)
    client.log_param(killed.info.run_id, "search.workers", "64")
    (stage.state / "mlflow_run_id").write_text(killed.info.run_id)
    with tracked(stage):
        pass
    params = client.get_run(killed.info.run_id).data.params
    assert params["search.trials"] == "104"
    assert params["search.workers"] == "64", "MLflow refuses another value"


def test_a_deleted_run_is_begun_anew_and_a_deleted_experiment_is_named(stage: Stage, store: Path) -> None:
    with suppress(KeyboardInterrupt), tracked(stage):
        raise KeyboardInterrupt
    (deleted,) = runs(store, stage.config.tracking.experiment)
    MlflowClient().delete_run(deleted.info.run_id)
    with tracked(stage):
        pass
    (retried,) = runs(store, stage.config.tracking.experiment)
    assert retried.info.run_id != deleted.info.run_id
    MlflowClient().delete_experiment(retried.info.experiment_id)
    with pytest.raises(ValueError, match=rf"experiment {stage.config.tracking.experiment} was deleted"), tracked(stage):
        pass


LABELS = (
    "C++",
    "C--",
    "a//b",
    "a/b/",
    "/a",
    "..",
    "../a",
    ".",
    "",
    "a\nb",
    "50%",
    "é",
    "x" * 300,
    "x" * 299 + "y",
    "\ud83d",
)


def test_any_label_is_a_key_of_parameters_metrics_and_tags(stage: Stage, store: Path) -> None:
    stage.config.tracking.experiment += "x" * 600
    with tracked(stage):
        tracking.log_params({**dict.fromkeys(LABELS, "y" * 9000), "corpus.weights.web/c4": 0.5})
        tracking.log_metrics(dict.fromkeys(LABELS, 1.0))
        for label in LABELS:
            tracking.log_series(f"series of {label}", [(0, 1.0)])
        with tracking.child_run("x" * 9000, tags=dict.fromkeys(LABELS, "y" * 9000)):
            pass
    child, parent = runs(store, stage.config.tracking.experiment[:250])
    assert parent.data.params["corpus.weights.web/c4"] == "0.5"
    assert len([value for value in parent.data.params.values() if value == "y" * 500]) == len(LABELS)
    assert {"é", "C__-f1deb75f"} <= parent.data.metrics.keys()
    assert len([value for value in parent.data.metrics.values() if value == 1.0]) == 2 * len(LABELS)
    assert len([value for value in child.data.tags.values() if value == "y" * 500]) == len(LABELS)
    assert child.info.run_name == "x" * 250


def test_a_series_keeps_every_point(stage: Stage, store: Path) -> None:
    points = [(step, step / 2) for step in range(1001)]
    with tracked(stage):
        tracking.log_series("loss", points)
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    history = client.get_metric_history(tracked_run.info.run_id, "loss")
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
    with tracked(stage):
        log_search("search_first", rows, table, best=2)
    tracked_runs = runs(store, stage.config.tracking.experiment)
    (parent,) = [mlflow_run for mlflow_run in tracked_runs if "mlflow.parentRunId" not in mlflow_run.data.tags]
    children = [mlflow_run for mlflow_run in tracked_runs if mlflow_run is not parent]
    assert {mlflow_run.data.tags["mlflow.parentRunId"] for mlflow_run in children} == {parent.info.run_id}
    assert {mlflow_run.data.tags["trial"]: mlflow_run.data.metrics["loss"] for mlflow_run in children} == {
        "3": 1.2,
        "1": 1.5,
    }
    assert all({"n_hat", "attention_factor"} <= mlflow_run.data.metrics.keys() for mlflow_run in children)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (best,) = [mlflow_run for mlflow_run in children if mlflow_run.data.tags["trial"] == "3"]
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
        row
        | {"model": model, "method": method, "length": length, "document_set": documents, "perplexity": value}
        | {"key_perplexity": value + 1 if length == 64 else "", "key_tokens": 5 * (length == 64)}
        for model in ("base", "finetuned")
        for method in ("pi", "yarn", "ours")
        for length, documents, value in ((64, "all", 3.0), (64, "all", 2.5), (256, "all", 2.0), (512, "long", 4.0))
    ] + [
        row
        | {"model": "base", "method": "none", "length": 64, "document_set": "all", "perplexity": float("inf")}
        | {"key_perplexity": "", "key_tokens": 0}
    ]
    keys = [
        {
            "model": "base",
            "method": "pi",
            "length": 64,
            "form": "varied",
            "depth": depth,
            "cluster": 0,
            "trials": 4,
            "correct": 1,
            "likely": 2,
        }
        for depth in (0, 1)
    ]
    card = {"corpus": "words", "test": {"documents": 2, "tokens": 99, "longest": 60, "hash": "0123456789abcdef0"}}
    weights = {"base": "a" * 64, "finetuned": "b" * 64}
    for _ in range(2):
        with tracked(stage):
            log_comparison(
                ResultTable.from_rows(rows),
                ResultTable.from_rows(keys),
                Verdict(64, "finetuned", 256, None, {}, {}, {}),
                name="Tiny/model: 1",
                weights=weights,
                card=card,
                target=256,
            )
    tracked_runs = [
        mlflow_run for mlflow_run in runs(store, stage.config.tracking.experiment) if "method" in mlflow_run.data.params
    ]
    assert sorted({str(mlflow_run.info.run_name) for mlflow_run in tracked_runs}) == [
        "base none", "base ours", "base pi", "base yarn", "finetuned ours", "finetuned pi", "finetuned yarn",
    ]  # fmt: skip
    assert len(tracked_runs) == 14
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (pi, _) = [mlflow_run for mlflow_run in tracked_runs if mlflow_run.info.run_name == "base pi"]
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
        "passkey_accuracy_varied": [(64, 0.25)], "passkey_likelihood_accuracy": [(64, 0.5)],
        "perplexity_at_target": [(0, 2.0)], "perplexity_key_tokens": [(64, 3.5)],
    }  # fmt: skip
    lengths = {run.info.run_name: run.data.metrics.get("works_to") for run in tracked_runs}
    assert {name for name, length in lengths.items() if length is not None} == {"finetuned ours"}
    assert lengths["finetuned ours"] == 256
    (dataset,) = pi.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("words test", "0123456789abcdef")
    # A search of runs leaves their models out.
    whole = [client.get_run(mlflow_run.info.run_id) for mlflow_run in tracked_runs]
    linked = {mlflow_run.inputs.model_inputs[0].model_id for mlflow_run in whole}
    assert len(linked) == 2, "the same weights are the same model in every evaluation"
    models = client.search_logged_models([pi.info.experiment_id])
    assert {(model.name, model.params["weights_sha256"]) for model in models} == {
        ("Tiny-model-1-base", "a" * 64), ("Tiny-model-1-finetuned", "b" * 64),
    }  # fmt: skip


def test_lightning_writes_into_the_run_of_its_stage(stage: Stage, store: Path) -> None:
    with tracked(stage):
        logger = tracking.lightning_logger()
        logger.log_metrics({"loss": 1.5}, step=3)
        logger.finalize("success")
    (tracked_run,) = runs(store, stage.config.tracking.experiment)
    assert tracked_run.data.metrics["loss"] == 1.5


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
    tracked_runs = runs(project)
    parents = {
        mlflow_run.info.run_id: mlflow_run for mlflow_run in tracked_runs if mlflow_run.info.run_name == "base sweep"
    }
    assert len(parents) == 2
    assert all(
        mlflow_run.data.tags["overrides"] == "experiment=demo model.dtype=float32,bfloat16"
        for mlflow_run in parents.values()
    )
    for parent in parents:
        children = [
            mlflow_run for mlflow_run in tracked_runs if mlflow_run.data.tags.get("mlflow.parentRunId") == parent
        ]
        assert sorted(mlflow_run.data.params["model.dtype"] for mlflow_run in children) == ["bfloat16", "float32"]
    assert {mlflow_run.info.status for mlflow_run in tracked_runs} == {FINISHED}
    assert len(tracked_runs) == 6
    written = {path.parent for path in project.rglob("base.json") if path.parent.name != "metrics"}
    assert len(written) == 4
    assert all(folder.is_relative_to(project / "multirun") for folder in written)
    for gone in ("results", "outputs", "mlruns", "work"):
        assert not (project / gone).exists()
    assert run(project, "dvc", "status").stdout == before
    assert not run(project, "git", "status", "--porcelain").stdout


def test_a_sweep_with_a_job_that_fails_is_a_failed_run(project: Path) -> None:
    ended = run(project, sys.executable, "pipelines/base.py", "-m", "model.path=gone", "tracking.experiment=failing")
    assert ended.returncode == 1
    last = ended.stdout.strip().splitlines()[-1]
    assert last.startswith("base: ")
    assert "gone is not there; give a folder with a" in last
    assert {mlflow_run.info.status for mlflow_run in runs(project, "failing")} == {FAILED}
    # A job whose configuration is refused has no run of its own.
    assert [mlflow_run.info.run_name for mlflow_run in runs(project, "failing")] == ["base sweep"]
