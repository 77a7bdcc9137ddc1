"""The addresses at which MLflow's pages show the runs of a project, and the server that `make ui` starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient

from browser import chromium, text_of, until
from ropewalk import run_table, tracking
from ropewalk.config import TrackingConfig
from workspace import ROOT, environment


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite store whose tables are made once, which takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    tracking.open_experiment(TrackingConfig(uri=uri))
    return uri


def test_the_address_of_the_table_names_the_type_of_workflow_and_the_view() -> None:
    address = run_table.table_address("http://127.0.0.1:5000", "7")
    page, _, query = address.partition("?")
    assert page == "http://127.0.0.1:5000/#/experiments/7/runs"
    assert parse_qs(query) == {"workflowType": ["machine_learning"], "viewStateShareKey": ["ropewalk"]}


def test_the_address_of_the_chart_names_its_runs_and_metrics() -> None:
    query = parse_qs(run_table.chart_address("http://host", "7", ["a", "b"]).partition("?")[2])
    assert json.loads(query["runs"][0]) == ["a", "b"]
    assert json.loads(query["experiments"][0]) == ["7"]
    assert json.loads(query["plot_metric_keys"][0]) == ["perplexity", "perplexity_long"]
    assert query["x_axis"] == ["step"]


def test_the_first_port_that_nothing_listens_at_is_taken() -> None:
    with socket.socket() as listener:
        listener.bind((run_table.HOST, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert run_table.free_port(taken) > taken
        with pytest.raises(OSError, match=f"ports {taken} to {taken} of 127.0.0.1 are taken"):
            run_table.free_port(taken, tries=1)


def test_without_a_screen_no_browser_is_told_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not run_table.open_browser("http://127.0.0.1:5000")
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setenv("PATH", "")
    assert not run_table.open_browser("http://127.0.0.1:5000")


def test_the_runs_of_the_chart_are_those_of_the_latest_evaluation(store: str) -> None:
    experiment = tracking.open_experiment(TrackingConfig(uri=store))
    client = MlflowClient(store)
    assert tracking.evaluated_runs(experiment) == []
    latest: list[str] = []
    for start in (1000, 2000):
        parent = client.create_run(experiment, start_time=start).info.run_id
        tags = {"mlflow.parentRunId": parent}
        children = [client.create_run(experiment, start_time=start + n, tags=tags) for n in (1, 2)]
        latest = [child.info.run_id for child in children]
        for run_id in latest:
            client.log_param(run_id, "method", "yarn")
    assert tracking.evaluated_runs(experiment) == latest


def test_a_server_at_an_address_is_shown_and_none_is_started(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "open_experiment", lambda config: "7")
    monkeypatch.setattr(tracking, "tag_experiment", lambda experiment, tags: None)
    monkeypatch.setattr(tracking, "evaluated_runs", lambda experiment: [])
    monkeypatch.setattr(run_table, "open_browser", lambda address: False)
    run_table.main(["tracking.uri=http://server:5000/", "tracking.experiment=mine"])
    assert capsys.readouterr().out == f"Runs of mine: {run_table.table_address('http://server:5000', '7')}\n"


@pytest.mark.slow
def test_make_ui_shows_the_table_first_to_this_machine_alone_and_ends_with_all_its_processes(
    store: str, tmp_path: Path
) -> None:
    client, trained = MlflowClient(store), tracking.open_experiment(TrackingConfig(uri=store, experiment="mine"))
    run = client.create_run(trained, run_name="report", tags={"model": "walker", "way": "trained"}).info.run_id
    client.log_metric(run, "works_to", 4096)
    client.log_metric(run, "perplexity_at_target", 2.71828)
    environ = environment(ROOT) | {"MLFLOW_TRACKING_URI": store}
    command = (sys.executable, "-m", "ropewalk.run_table", "tracking.experiment=mine")
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as page:
        timer = threading.Timer(120, page.kill)
        timer.start()
        assert page.stdout is not None
        lines = []
        for line in page.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        timer.cancel()
        (address,) = [line.partition(": ")[2] for line in lines if line.startswith("Runs of mine: ")]
        port = int(address.partition("127.0.0.1:")[2].partition("/")[0])
        with pytest.raises(OSError, match="taken"):
            run_table.free_port(port, tries=1)
        with chromium(tmp_path / "profile", width=1700, height=1000) as browser:
            browser.get(address)
            shown = ("report", "walker", "trained", "works_to", "perplexity_at_target", "2.71828", "Model training")
            until(lambda: all(text in text_of(browser) for text in shown), "the table of runs")
        os.kill(page.pid, signal.SIGTERM)
        assert page.wait(30) == 0
    assert run_table.free_port(port, tries=1) == port
    experiment = MlflowClient(store).get_experiment_by_name("mine")
    assert experiment is not None
    view = json.loads(experiment.tags["mlflow.sharedViewState.ropewalk"])
    assert view["selectedColumns"] == list(run_table.COLUMNS)
    assert f"/experiments/{experiment.experiment_id}/runs" in address
