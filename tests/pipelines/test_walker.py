"""Training the walker as `make walker` does: an interrupt and a full disk end it with one line that says what to do."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from workspace import copy_project, environment, run

SCRIPT = """
import runpy, sys
from ropewalk.models import walker
walker.CHECKPOINT_EVERY = 1
sys.argv[0] = "pipelines/walker.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PROGRESS = re.compile(r"\[\d\d:\d\d")
SMALL_DISK = "1m"  # more than the tokens, less than the weights


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with a corpus of 24 small texts."""
    folder = copy_project(tmp_path / "project")
    (folder / "texts").mkdir()
    for text in range(24):
        lines = "".join(f"line {line} of {text} is {line * text % 97}\n" for line in range(1000))
        (folder / "texts" / f"{text}.txt").write_text(lines)
    return folder


def command(steps: int) -> tuple[str, ...]:
    """pipelines/walker.py with a checkpoint after every step, each of one row."""
    corpus = ("corpus=text", "corpus.path=texts", "corpus.long_tokens=4096", "corpus.min_long_documents=2")
    shares = ("corpus.search_share=0.3", "corpus.test_share=0.3")
    training = ("walker.batch_size=1", f"walker.cycles=[{steps}]", "walker.learning_rates=[1e-3]", "work=work")
    return (sys.executable, "-c", SCRIPT, "experiment=smoke", *corpus, *shares, *training)


def checkpoints(project: Path) -> dict[Path, int]:
    """When each was written."""
    written = {}
    for path in project.glob("work/walker/*/last.ckpt"):
        # While a checkpoint is written, there is a moment in which only the one before is left, under its other name.
        with suppress(FileNotFoundError):
            written[path] = path.stat().st_mtime_ns
    return written


def train_until_interrupted(project: Path) -> tuple[int, list[str]]:
    """(steps done at the start, lines on standard error): Ctrl-C once there is a checkpoint more."""
    process = subprocess.Popen(
        command(10_000),
        cwd=project,
        env=environment(project),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline()]
        while "/10000 [" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        before = checkpoints(project)
        while checkpoints(project) == before:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        lines += process.communicate(timeout=120)[1].splitlines(keepends=True)
    finally:
        process.kill()
    assert process.returncode == 1, lines
    done = re.search(r"(\d+)/10000 \[", "".join(lines))
    assert done
    return int(done[1]), lines


def test_ctrl_c_is_one_line_and_the_same_command_resumes(project: Path) -> None:
    model = (project / "models" / "walker" / "training.json").read_text()
    for resumes in (False, True):
        done, lines = train_until_interrupted(project)
        assert (done > 0) == resumes
        assert lines[-1] == "walker: interrupted; run the same command again to resume\n"
        assert all(PROGRESS.search(line) for line in lines[:-1]), lines
    assert (project / "models" / "walker" / "training.json").read_text() == model


@pytest.mark.parametrize("full", ["work", "models"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(project: Path, small_disk: Path, full: str) -> None:
    if full == "models":
        (project / "models").rename(project / "elsewhere")
    (project / full).symlink_to(small_disk)
    completed = run(project, *command(2))
    assert completed.returncode == 1, completed.stdout
    last = completed.stdout.splitlines()[-1]
    assert re.fullmatch(r"walker: no space left on the disk of \S+; free some and run the same command again", last), (
        completed.stdout
    )
    assert "Traceback" not in completed.stdout
    left = {path.name for path in small_disk.rglob("*")}
    assert "last.ckpt" not in left
    assert not any(name.startswith(".") for name in left)
    assert full == "work" or not left
