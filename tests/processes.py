"""Other Python processes, to be killed: they see the tests' modules and have one thread."""

import faulthandler
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import cloudpickle

_HERE = Path(__file__).resolve().parent


def trials_done(studies: Iterable[Path]) -> int:
    """Number of finished trials in the first of the SQLite files that another process writes; 0 where there is none."""
    for study in studies:
        with sqlite3.connect(f"file:{study}?mode=ro", uri=True) as base:
            try:
                ((count,),) = base.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'")
            except sqlite3.OperationalError:
                return 0
            return int(count)
    return 0


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


def fork(work: Callable[[], object]) -> BaseProcess:
    """A process of its own, forked from this one, so that it has nothing to import."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def fresh(work: Callable[[], object]) -> BaseProcess:
    """A process that has torch imported and inherits nothing of what this one did since, such as threads and locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning", "transformers", "ropewalk.finetune.train"])
    process = context.Process(target=_run, args=(cloudpickle.dumps(work),))
    process.start()
    return process


def _run(work: bytes) -> None:
    faulthandler.enable()
    import torch

    torch.set_num_threads(1)
    cloudpickle.loads(work)()


def fork_until_killed(work: Callable[[], object]) -> None:
    """Run ``work`` in a forked process, which must end by sending SIGKILL to itself."""
    process = fork(work)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
