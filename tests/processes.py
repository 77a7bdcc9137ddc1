"""Other Python processes, to be killed: they see the tests' modules and have one thread."""

import os
import signal
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs ``code`` with ``arguments`` in sys.argv."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent / "src")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_until_killed(code: str, *arguments: object) -> None:
    """Run ``code``, which must end by sending SIGKILL to itself."""
    process = start(code, *arguments)
    try:
        out, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, f"ended with {process.returncode}\n{out}\n{error}"


def kill_self() -> None:
    """End this process as `kill -9` does: nothing is cleaned up or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)
