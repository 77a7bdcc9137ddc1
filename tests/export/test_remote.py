"""Results go to an S3-compatible DVC remote and come back, as docs/export.md says: against a server on this machine."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import ROOT, commit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of moto's S3 server, in a process of its own, with an empty bucket."""
    pytest.importorskip("moto", reason="the extra dev is not installed")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("dvc_s3", reason="the extra s3 is not installed")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        yield address
    finally:
        server.kill()
        server.wait()


def test_results_come_back_from_an_s3_remote(store: str, tmp_path: Path) -> None:
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
        found = subprocess.run(
            command,
            cwd=project,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr

    dvc = (sys.executable, "-m", "dvc")
    run(*dvc, "init", "--quiet")
    run(*dvc, "add", "--quiet", "results/model.safetensors")
    for command in commands:
        run(*dvc, *command.replace("https://s3.example.org", store).split()[1:])
    kept = (project / ".dvc" / "config").read_text()
    assert store in kept
    assert not [key for key in ("a-key", "a-secret") if key in kept]
    # Another machine: what git carries, and an empty cache.
    commit(project)
    subprocess.run(("git", "clone", "--quiet", project, tmp_path / "elsewhere"), check=True)
    project = tmp_path / "elsewhere"
    assert not (project / "results" / "model.safetensors").exists()
    run(*dvc, "pull", "--quiet")
    assert (project / "results" / "model.safetensors").read_bytes() == weights
