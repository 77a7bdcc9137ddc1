"""Hydra's launchers for a cluster: submitit's processes on this machine for real, Slurm's settings by its schema."""

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from mlflow import MlflowClient
from omegaconf import OmegaConf

from ropewalk.rope import RopeScaling
from tiny_models import tiny_base
from tiny_runs import token_store
from workspace import ROOT, copy_project, run


@pytest.mark.parametrize(("name", "schema"), [("submitit_local", LocalQueueConf), ("submitit_slurm", SlurmQueueConf)])
def test_a_launcher_has_only_what_the_plugin_knows(name: str, schema: type) -> None:
    values = yaml.safe_load((ROOT / "conf" / "hydra" / "launcher" / f"{name}.yaml").read_text())
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values)))
    assert merged == {**merged, **values}
    assert merged["_target_"] == schema()._target_


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_tasks_of_one_submitit_job_share_a_search(tmp_path: Path, address: str) -> None:
    project = copy_project(tmp_path / "project")
    inputs = tmp_path / "inputs"
    token_store(inputs / "tokens" / "search", tokens=2100)
    tiny_base(original_length=256, rotary_dim=32).write(inputs / "base.json")
    completed = run(
        project,
        sys.executable,
        "pipelines/search_first.py",
        "-m",
        "hydra/launcher=submitit_local",
        "hydra.launcher.tasks_per_node=2",
        "search=fast",
        "search.gradient_steps=1",
        "search.trials=12",
        "search.documents=2",
        f"search.storage={address}",
        f"inputs={inputs}",
    )
    assert completed.returncode == 0, completed.stdout
    (factors,) = (project / "multirun").rglob("first.json")
    assert RopeScaling.from_json(factors.read_text()).target_length == 2048
    (summary,) = optuna.get_all_study_summaries(address)
    assert summary.study_name.endswith("2048")
    assert sum(key.startswith("result ") for key in summary.user_attrs) == 1
    trials = optuna.load_study(study_name=summary.study_name, storage=address).trials
    assert sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials) == 12
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ropewalk")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    # Each task is a run, or both are one; the search with its best ten trials is in one of them.
    assert sum(mlflow_run.info.run_name == "search_first" for mlflow_run in runs) in (1, 2)
    assert sum("best" in mlflow_run.info.run_name for mlflow_run in runs) == 10
    assert len(list((project / "multirun").rglob("*_log.out"))) == 2
