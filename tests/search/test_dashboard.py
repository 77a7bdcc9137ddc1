"""optuna-dashboard, started as the guide says, on the storage of a search that is done."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiny_runs import SEARCH, search
from workspace import ROOT, environment


def test_the_dashboard_shows_a_search(tmp_path: Path) -> None:
    result, _ = search(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("optuna-dashboard", "--host", "127.0.0.1", "--port", str(port), "sqlite:///study.db")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path / "state", env=environment(ROOT), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as answer:
            return json.load(answer)

    try:
        studies, start = [], time.monotonic()
        while not studies:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() - start < 60
            with suppress(OSError):
                studies = asked("studies")["study_summaries"]
        numbers = {study["study_name"]: study["study_id"] for study in studies}
        assert set(numbers) == {"rescale-factors"}
        study = asked(f"studies/{numbers['rescale-factors']}?after=0")
        assert len(study["trials"]) == SEARCH.trials
        values = [trial["values"][0] for trial in study["trials"] if trial["state"] == "Complete"]
        assert min(values) == result.loss
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
