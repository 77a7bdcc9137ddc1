"""Hyperparameters of the first fine-tuning, searched with Optuna."""

import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import FixedTrial

from ropewalk.composition import composed
from ropewalk.config import Config
from ropewalk.files import read_json
from ropewalk.hparams_search import check_space, open_study, search_hparams, suggest
from ropewalk.stage import Stage, tracked
from tiny_pipeline import OVERRIDES, byte_store, evaluate_inputs
from workspace import ROOT, run

SPACE = {
    "finetune.first.learning_rate": "tag(log, interval(1e-5, 1e-3))",
    "finetune.first.batch_size": "choice(1, 2)",
    "finetune.first.warmup_steps": "int(interval(0, 1))",
}


def test_values_are_asked_for_as_hydra_writes_a_sweep() -> None:
    trial = FixedTrial(
        {"finetune.first.learning_rate": 1e-4, "finetune.first.batch_size": "2", "finetune.first.warmup_steps": 1}
    )
    assert suggest(trial, SPACE) == [  # type: ignore[arg-type]
        "finetune.first.learning_rate=0.0001", "finetune.first.batch_size=2", "finetune.first.warmup_steps=1",
    ]  # fmt: skip
    assert trial.distributions["finetune.first.learning_rate"] == optuna.distributions.FloatDistribution(
        1e-5, 1e-3, log=True
    )
    assert trial.distributions["finetune.first.batch_size"] == optuna.distributions.CategoricalDistribution(("1", "2"))
    assert trial.distributions["finetune.first.warmup_steps"] == optuna.distributions.IntDistribution(0, 1)


def config(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Config:
    # Where the demo's model lies, from whose window values follow.
    monkeypatch.chdir(ROOT)
    return composed(["experiment=demo", *OVERRIDES, "finetune.first.steps=2", *overrides])


def test_a_space_names_keys_of_the_configuration_and_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = config(monkeypatch, "hparams_search=finetune", "output=out")
    check_space(composed)
    composed.hparams_search.space = {"finetune.first.rate": "choice(1)"}
    with pytest.raises(ValueError, match=r"hparams_search\.space: finetune\.first\.rate is not a key"):
        check_space(composed)
    composed.hparams_search.space = {}
    with pytest.raises(ValueError, match=r"hparams_search\.space is empty; give hparams_search=finetune"):
        check_space(composed)
    with pytest.raises(ValueError, match="must be an interval, a choice or a range, found 3"):
        suggest(FixedTrial({}), {"finetune.first.batch_size": "3"})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_study_continues_with_the_trial_that_was_killed_and_its_runs_are_below_one(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = evaluate_inputs(scratch / "results")
    byte_store(inputs / "tokens" / "search")
    places = (f"output={scratch / 'sweep'}", f"inputs={inputs}", f"work={scratch / 'work'}")
    settings = ("hparams_search=finetune", "hparams_search.trials=2", "hparams_search.documents=2")
    stage = Stage("sweep", config(monkeypatch, *settings, *places), ("hparams_search", "finetune", "model"), "inputs")
    stage.config.hparams_search.space = SPACE
    monkeypatch.chdir(scratch)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    killed = open_study(stage).ask()
    rate = killed.suggest_float("finetune.first.learning_rate", 1e-5, 1e-3, log=True)
    with tracked(stage):
        search_hparams(stage)
    trials = open_study(stage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert trials[0].params["finetune.first.learning_rate"] == rate
    assert [path.name for path in (scratch / "sweep" / "trials").iterdir()] == ["resolved.yaml"]
    client = MlflowClient(f"sqlite:///{scratch / 'mlflow.db'}")
    runs = {run.info.run_id: run for run in client.search_runs(["1"])}
    names = {run.info.run_id: run.info.run_name for run in runs.values()}
    above = sorted((run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId", ""))) for run in runs.values())
    assert above == [
        ("finetune_first", "trial 0"), ("finetune_first", "trial 1"), ("sweep", None),
        ("trial 0", "sweep"), ("trial 1", "sweep"),
    ]  # fmt: skip
    values = {run.info.run_name: run.data.metrics.get("perplexity_at_target") for run in runs.values()}
    assert [values["trial 0"], values["trial 1"]] == [trial.value for trial in trials]
    # More trials continue the same study.
    stage.config.hparams_search.trials = 3
    with tracked(stage):
        best = search_hparams(stage)
    assert [trial.number for trial in open_study(stage).trials] == [0, 1, 2]
    assert best.value == min(trial.value for trial in open_study(stage).trials if trial.value is not None)
    other = replace(stage.config, hparams_search=replace(stage.config.hparams_search, documents=1))
    assert not open_study(replace(stage, config=other)).trials


@pytest.mark.slow
def test_the_script_says_the_best_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = evaluate_inputs(tmp_path / "results")
    byte_store(inputs / "tokens" / "search")
    command = (sys.executable, str(ROOT / "pipelines" / "sweep.py"), "experiment=demo", "hparams_search=finetune")
    settings = ("hparams_search.trials=1", "hparams_search.documents=2", "finetune.first.steps=1", "output=sweep")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    ended = run(tmp_path, *command, *settings, *OVERRIDES)
    assert ended.returncode == 0, ended.stdout
    best = read_json(tmp_path / "sweep" / "best.json")
    assert f"best: perplexity {best['perplexity_at_target']:.4f} with {' '.join(best['overrides'])}" in ended.stdout
    no_number = "hparams_search.space={finetune.first.batch_size: 'choice(x)'}"
    refused = run(tmp_path, *command, *settings, *OVERRIDES, no_number)
    assert refused.returncode == 1
    assert refused.stdout.strip().splitlines()[-1] == "sweep: no trial succeeded; the lines above say why"
