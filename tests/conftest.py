"""What all tests share: where the data for tests lies, and the number of threads, one by default."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from s3_server import s3_store

__all__ = ["s3_store"]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    # A shell starts what it puts in the background with SIGINT ignored, and every process below inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data for tests: ../shared beside the project, or ROPEWALK_SHARED."""
    folder = Path(os.environ.get("ROPEWALK_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"the folder {folder} with data for tests does not exist (set ROPEWALK_SHARED to it)")
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the project's models, for scripts run by `workspace.run_script`."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "ROPEWALK_PARENT_RUN", "ROPEWALK_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of the size that the test module names in SMALL_DISK ("64k")."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.module.SMALL_DISK}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    # Lazily, since databases on it may still be open in this process.
    subprocess.run(["umount", "-l", str(disk)], check=True)
