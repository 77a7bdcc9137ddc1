"""MLflow's pages, opened at the runs of this project: `python -m ropewalk.run_table` serves them to this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import quote

from ropewalk import tracking
from ropewalk.composition import composed, project_overrides

HOST, PORT = "127.0.0.1", 5000
COLUMNS = {
    "tags.`model`": 110,
    "tags.`way`": 90,
    "metrics.`works_to`": 100,
    "metrics.`perplexity_at_target`": 160,
    "metrics.`passkey_at_target`": 150,
    "metrics.`hours`": 90,
    "metrics.`tokens`": 100,
}
"""Columns of the run table between start and duration, as MLflow's pages name them, with their widths in pixels."""
_VIEW = "ropewalk"
"""Key under which the experiment keeps the columns; MLflow's pages write such views when a view is shared."""
_PATIENCE = 120
"""Seconds that a server may take to start."""


def table_address(server: str, experiment: str) -> str:
    """Address of the table of an experiment's runs; without the type of workflow MLflow opens its page for traces."""
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"


def chart_address(server: str, experiment: str, runs: Sequence[str]) -> str:
    """Address of the chart of perplexity against input length of these runs."""
    chosen = "&".join(
        f"{name}={quote(json.dumps(value))}"
        for name, value in (("runs", list(runs)), ("experiments", [experiment]), ("metric", "perplexity"))
    )
    keys = quote(json.dumps(["perplexity", "perplexity_long"]))
    return f"{server}/#/metric?{chosen}&plot_metric_keys={keys}&x_axis=step&y_axis_scale=log&show_point=true"


def free_port(first: int = PORT, *, tries: int = 20) -> int:
    """The first port of this machine, from ``first`` on, at which nothing listens; raises OSError after ``tries``."""
    for port in range(first, first + tries):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            return port
    raise OSError(f"ports {first} to {first + tries - 1} of {HOST} are taken; end a server that you no longer need")


def open_browser(address: str) -> bool:
    """Whether a browser was told to open the address. Without a screen none is, as it would take over the terminal."""
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    with suppress(webbrowser.Error, OSError):
        return has_screen and webbrowser.open(address)
    return False


@contextmanager
def serve(store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on the store, once it answers, to the end of the block; raises OSError where it does not."""
    quiet = ("--workers", "1", "--uvicorn-opts", "--log-level warning")
    place = ("--host", HOST, "--port", str(port), "--backend-store-uri", store)
    command = (sys.executable, "-m", "mlflow", "ui", *place, *quiet)
    # Without the processes for jobs that only applications with traces use.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING", **os.environ}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"MLflow's server on {store} did not start; the lines above say why")
            time.sleep(0.2)
        yield server
    finally:
        with suppress(ProcessLookupError):
            # Also the processes that it started.
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
        return True
    return False


def main(overrides: Sequence[str]) -> None:
    config = composed(project_overrides([*overrides, "output=results"]), sections=("tracking",)).tracking
    experiment, store = tracking.open_experiment(config), tracking.store_uri(config)
    view = {"selectedColumns": list(COLUMNS), "columnOrder": list(COLUMNS), "columnWidths": COLUMNS}
    tracking.tag_experiment(experiment, {f"mlflow.sharedViewState.{_VIEW}": json.dumps(view)})
    if store.startswith(("http://", "https://")):
        _show(store.rstrip("/"), config.experiment, experiment)
        return
    if (port := free_port()) != PORT:
        print(f"Port {PORT} is taken; MLflow's pages are at port {port}.")
    with suppress(KeyboardInterrupt), serve(store, port) as server:
        _show(f"http://{HOST}:{port}", config.experiment, experiment)
        print("Ctrl-C ends the server.", flush=True)
        server.wait()


def _show(server: str, name: str, experiment: str) -> None:
    print(f"Runs of {name}: {table_address(server, experiment)}")
    if runs := tracking.evaluated_runs(experiment):
        print(f"Perplexity by input length, latest evaluation: {chart_address(server, experiment, runs)}", flush=True)
    open_browser(table_address(server, experiment))


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(0))
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"run_table: {error}")
