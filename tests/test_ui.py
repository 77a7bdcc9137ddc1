"""MLflow's own pages on a sweep over every method: its runs are found, two are compared, and their chart is seen."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from selenium.webdriver.common.by import By

from browser import chromium, text_of, until
from ropewalk.files import read_table
from ropewalk.rope.methods import common
from tiny_models import WINDOW
from tiny_pipeline import FIRST, OVERRIDES, SECOND, evaluate_inputs
from workspace import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
METHODS = common()


@dataclass(frozen=True)
class Swept:
    folder: Path
    address: str
    """The address of MLflow's server."""
    experiment: str
    runs: dict[str, Run]
    """Those of a model and a method, by their names."""


def script(folder: Path, name: str, *arguments: str) -> None:
    """Run a stage alone, as the README says, with the store in ``folder``."""
    command = (sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *arguments, *OVERRIDES)
    completed = subprocess.run(
        command, cwd=folder, env=environment(ROOT), capture_output=True, text=True, timeout=900, check=False
    )
    assert completed.returncode == 0, completed.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """PI, NTK and YaRN fine-tuned for two steps, every method evaluated in one sweep, and a server on the store."""
    folder = tmp_path_factory.mktemp("ui")
    inputs = evaluate_inputs(folder / "results")
    steps = (
        "finetune.first.steps=2",
        "finetune.second.steps=2",
        "finetune.first.batch_size=2",
        "finetune.second.batch_size=2",
    )
    script(folder, "finetune_baselines", "baselines.methods=[pi,ntk,yarn]", f"output={inputs}", *steps)
    script(folder, "prompts", f"output={inputs}")
    script(folder, "evaluate", "-m", f"rope={','.join(METHODS)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = ("mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            (*command, "--backend-store-uri", store), cwd=folder, env=environment(ROOT), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:

        def answers() -> bool:
            assert server.poll() is None, (folder / "ui.log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
            return False

        until(answers, "the server")
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name("ropewalk")
        assert experiment is not None
        children = client.search_runs([experiment.experiment_id], "params.method != ''", max_results=1000)
        yield Swept(folder, address, experiment.experiment_id, {str(child.info.run_name): child for child in children})
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), width=1700, height=1000) as driver:
        yield driver


def test_each_job_of_the_sweep_reads_its_method_on_every_model(swept: Swept) -> None:
    jobs = sorted((swept.folder / "multirun").rglob("perplexity.csv"))
    assert len(jobs) == len(METHODS)
    read: dict[str, dict[str, set[int]]] = {}
    for table in jobs:
        for row in read_table(table):
            read.setdefault(row["method"], {}).setdefault(row["model"], set()).add(row["length"])
    lengths = {WINDOW, FIRST, SECOND}
    for method in METHODS[:-1]:
        assert read[method]["base"] == read[method]["finetuned"] == lengths
    assert read["ours"]["finetuned"] == lengths
    assert {model for methods in read.values() for model in methods if model.startswith("baseline")} == {
        "baseline_pi", "baseline_ntk", "baseline_yarn",
    }  # fmt: skip
    assert read["yarn"]["baseline_yarn"] == lengths


def test_a_run_of_a_model_and_a_method_has_its_lengths_as_steps_and_its_data_and_weights_linked(swept: Swept) -> None:
    client = MlflowClient(swept.address)
    run = swept.runs["finetuned yarn"]
    assert (run.data.params["model"], run.data.params["method"]) == ("finetuned", "yarn")
    assert run.data.params["longest_length"] == str(SECOND)
    history = client.get_metric_history(run.info.run_id, "perplexity")
    assert [point.step for point in history] == [WINDOW, FIRST]
    (long,) = client.get_metric_history(run.info.run_id, "perplexity_long")
    assert long.step == SECOND
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "random test"
    # A search of runs leaves their models out.
    whole = {name: client.get_run(child.info.run_id) for name, child in swept.runs.items()}
    weights = {name: child.inputs.model_inputs[0].model_id for name, child in whole.items()}
    assert weights["finetuned yarn"] == weights["finetuned pi"] != weights["base yarn"]


def test_two_runs_are_picked_from_the_list_and_their_perplexity_by_length_is_seen_in_one_chart(
    swept: Swept, browser: Any
) -> None:
    names = ["finetuned pi", "finetuned yarn"]
    compare_runs(browser, swept.address, swept.experiment, names, pictures=swept.folder)
    assert sorted(path.name for path in swept.folder.glob("*.png")) == ["chart.png", "compare.png", "runs.png"]
    assert f"(step={FIRST})" in text_of(browser)


def compare_runs(browser: Any, address: str, experiment: str, names: list[str], *, pictures: Path) -> None:
    """Pick two runs in the list, compare them and open the chart of their perplexity; a screenshot of each page."""
    browser.get(f"{address}/#/experiments/{experiment}/runs?searchFilter={quote(_OF_A_METHOD)}")
    until(lambda: browser.execute_script(_EXPAND, names), "the list of runs")
    close_assistant(browser)
    for name in names:
        until(lambda name=name: browser.execute_script(_PICK, name), f"the box of {name}")
    picture(browser, pictures / "runs.png")
    until(lambda: browser.execute_script(_PRESS, "Compare"), "the button Compare")
    until(lambda: f"Comparing {len(names)} Runs from 1 Experiment" in text_of(browser), "the comparison")
    until(
        lambda: all(name in text_of(browser) for name in (*names, "longest_length", "perplexity")), "their parameters"
    )
    picture(browser, pictures / "compare.png")
    runs = browser.current_url.split("runs=")[1].split("&")[0]
    chart = f"runs={runs}&experiments={quote(json.dumps([experiment]))}&metric={quote(json.dumps('perplexity'))}"
    keys = quote(json.dumps(["perplexity", "perplexity_long"]))
    browser.get(f"{address}/#/metric?{chart}&plot_metric_keys={keys}&x_axis=step")

    def lines() -> list[Any]:
        paths = browser.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace path.js-line")
        return paths if len(paths) >= len(names) else []

    assert all(line.get_attribute("d") for line in until(lines, "the lines of the chart"))
    until(lambda: all(f"{name} (perplexity)" in text_of(browser) for name in names), "their names in the legend")
    picture(browser, pictures / "chart.png")


# No more runs than the list draws at once.
_OF_A_METHOD = "params.model = 'finetuned'"
# Runs lie below the evaluation that made them, and that below its sweep: each is opened once.
_EXPAND = """
window.opened = window.opened || new Set();
for (const button of document.querySelectorAll('[role=row] button[data-component-id*=runnamecellrenderer]')) {
  const id = button.closest('[role=row]').getAttribute('row-id');
  if (!window.opened.has(id)) { window.opened.add(id); button.click(); }
}
const names = [...document.querySelectorAll('[role=row] a')].map(a => a.textContent.trim());
return arguments[0].every(name => names.includes(name));
"""
# The list draws each row twice, a pinned part and the rest; the box stands in either.
_PICK = """
const link = [...document.querySelectorAll('[role=row] a')].find(a => a.textContent.trim() == arguments[0]);
if (!link) return false;
const id = link.closest('[role=row]').getAttribute('row-id');
const box = document.querySelector(`[role=row][row-id="${id}"] input[type=checkbox]`);
if (!box.checked) box.click();
return box.checked;
"""
_PRESS = """
const button = [...document.querySelectorAll('button')].find(b => b.textContent.trim() == arguments[0] && !b.disabled);
if (!button) return false;
button.click();
return true;
"""


def close_assistant(browser: Any) -> None:
    """Put away the panel that MLflow opens beside its pages."""
    browser.execute_script("document.querySelectorAll('button[aria-label=\"Close\"]').forEach(b => b.click())")


def picture(browser: Any, path: Path) -> None:
    """A screenshot that shows something."""
    assert browser.save_screenshot(str(path))
    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 100
