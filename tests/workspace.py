"""Where tests run scripts, dvc and git: a scratch folder or a copy of the project, never the project itself."""

import logging
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tuple(sorted(path.stem for path in (ROOT / "pipelines").glob("*.py")))
APPS = tuple(name for name in SCRIPTS if name != "compose")
"""The scripts that are Hydra apps."""
_PARTS = (
    "conf models pipelines src .gitignore .dvcignore .dvc/config .dvc/.gitignore dvc.yaml overrides.yaml "
    "Makefile pyproject.toml constraints.txt"
).split()
_NOT_OURS = ("MLFLOW_", "ROPEWALK_PARENT", "HYDRA_", "DVC_")


def environment(project: Path) -> dict[str, str]:
    """For child processes: this interpreter first on PATH, the project's own sources first, one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_OURS)}
    python = Path(sys.executable).parent
    return {
        **kept,
        "PATH": f"{python}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join([str(project / "src"), kept.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }


def copy_project(folder: Path) -> Path:
    """The project's tracked parts in ``folder``, committed to a git repository of their own."""
    for part in _PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    commit(folder)
    return folder


def commit(folder: Path) -> str:
    """Commit everything in ``folder``, made a git repository where it is none; returns the commit."""
    for command in (
        ("init", "--quiet"),
        ("config", "user.name", "test"),
        ("config", "user.email", "test@example.org"),
        ("add", "--all"),
        ("commit", "--quiet", "--allow-empty", "--message", "test"),
    ):
        subprocess.run(("git", *command), cwd=folder, check=True)
    completed = subprocess.run(("git", "rev-parse", "HEAD"), cwd=folder, check=True, capture_output=True, text=True)
    return completed.stdout.strip()


def run(project: Path, *command: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in ``project``; standard error goes into standard output."""
    return subprocess.run(
        command,
        cwd=project,
        env=environment(project),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_overrides(folder: Path, *overrides: str) -> None:
    lines = "".join(f"- {override!r}\n" for override in overrides)
    (folder / "overrides.yaml").write_text(f"overrides:\n{lines}" if lines else "overrides: []\n")


def run_script(name: str, *arguments: str) -> None:
    """Run pipelines/<name>.py inside this process in the current folder; SystemExit says how it would end."""
    script = str(ROOT / "pipelines" / f"{name}.py")
    with _kept_logging():
        argv, sys.argv = sys.argv, [script, *arguments]
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            sys.argv = argv


@contextmanager
def _kept_logging() -> Iterator[None]:
    # Hydra puts a handler on the root logger that holds on to a captured, later closed stream.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
