"""Progress: a bar on a terminal, few whole lines elsewhere, with speed and time left."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ropewalk.progress import Progress
from tiny_runs import STEP, train

WORK = """
import time
from ropewalk.progress import Progress
with Progress(total=5, desc="work", unit="step") as bar:
    for _ in range(5):
        time.sleep(0.3)
        bar.update()
"""


def lines_of(text: str) -> list[str]:
    assert "\r" not in text
    return [line for line in text.splitlines() if line.strip()]


def test_a_log_gets_a_few_whole_lines_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=500, desc="work", unit="step") as bar:
        for _ in range(500):
            bar.update()
    lines = lines_of(capsys.readouterr().err)
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("work") for line in lines)
    assert sum("500/500" in line for line in lines) == 1
    assert "500/500" in lines[-1]


def test_what_is_drawn_at_the_end_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=1, desc="work", mininterval=0.0) as bar:
        bar.update()
        bar.refresh()
    lines = lines_of(capsys.readouterr().err)
    assert len(lines) == len(set(lines))


def test_nothing_to_do_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=0, desc="work"):
        pass
    assert list(Progress([], desc="work")) == []
    assert not capsys.readouterr().err


def test_a_line_tells_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=20, desc="work", unit="step", mininterval=0.02) as bar:
        for _ in range(20):
            time.sleep(0.01)
            bar.update()
    lines = lines_of(capsys.readouterr().err)
    assert len(lines) >= 4
    assert any(re.search(r"\d+/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+step/s", line) for line in lines[1:])


def test_an_iterable_is_passed_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress([1, 2, 3], desc="work")) == [1, 2, 3]
    lines_of(capsys.readouterr().err)


def test_a_terminal_gets_one_line_that_is_drawn_over() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    os.close(ours)
    assert shown.count(b"\r") >= 3
    assert shown.count(b"\n") == 1
    assert b"5/5" in shown


def test_a_training_counts_optimizer_steps_also_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step here is two microbatches."""
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, before_step=lambda step: 1 // 0 if step == 5 else None)
    stopped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiny")]
    assert [re.findall(r" \d/9 ", line) for line in stopped] == [[" 0/9 "], [" 5/9 "]]
    train(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiny")]
    assert [re.findall(r" \d/9 ", line) for line in lines] == [[" 4/9 "], [" 9/9 "]]
    assert "loss=" in lines[-1]
    assert "tokens_per_s=" in lines[-1]
    assert STEP.steps == 9
