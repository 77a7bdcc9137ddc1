"""Results go to an S3-compatible DVC remote and come back, as docs/export.md says: against a server on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workspace import ROOT, commit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_results_come_back_from_an_s3_remote(s3_store: str, tmp_path: Path) -> None:
    # As the guide has them, with this server's address.
    guide = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    commands = re.findall(r"^dvc (?:remote|push).*$", guide, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["remote", "remote", "push"]
    project = tmp_path / "project"
    project.mkdir()
    commit(project)
    (project / "results").mkdir()
    weights = os.urandom(100_000)
    (project / "results" / "model.safetensors").write_bytes(weights)

    def run(*command: str) -> None:
        completed = subprocess.run(
            command,
            cwd=project,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr

    dvc = (sys.executable, "-m", "dvc")
    run(*dvc, "init", "--quiet")
    run(*dvc, "add", "--quiet", "results/model.safetensors")
    for command in commands:
        run(*dvc, *command.replace("https://s3.example.org", s3_store).split()[1:])
    kept = (project / ".dvc" / "config").read_text()
    assert s3_store in kept
    assert not [key for key in ("a-key", "a-secret") if key in kept]
    # Another machine: what git carries, and an empty cache.
    commit(project)
    subprocess.run(("git", "clone", "--quiet", project, tmp_path / "elsewhere"), check=True)
    project = tmp_path / "elsewhere"
    assert not (project / "results" / "model.safetensors").exists()
    run(*dvc, "pull", "--quiet")
    assert (project / "results" / "model.safetensors").read_bytes() == weights
