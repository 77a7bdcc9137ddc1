"""Worker processes on one machine: each makes the same call, and they meet in the study's storage."""

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.multiprocessing as multiprocessing

_CLOCK_SECONDS = 60.0
"""By which a process's start may seem to move when the system's clock is set."""


@dataclass(frozen=True)
class WorkerProcess:
    """A process as others can tell whether it has ended."""

    machine: str
    """Name, network address and space of process numbers."""
    pid: int
    started: float
    """Seconds since 1970."""

    @classmethod
    def own(cls) -> "WorkerProcess":
        space = ""
        with suppress(OSError):  # only Linux has containers with numbers of their own
            space = str(Path("/proc/self/ns/pid").readlink())
        machine = f"{socket.gethostname()} {uuid.getnode():x} {space}"
        return cls(machine, os.getpid(), psutil.Process().create_time())

    @property
    def has_ended(self) -> bool:
        """False also where that cannot be told from here: on another machine."""
        if self.machine != WorkerProcess.own().machine:
            return False
        try:
            process = psutil.Process(self.pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            return zombie or abs(process.create_time() - self.started) > _CLOCK_SECONDS
        except psutil.NoSuchProcess:
            return True


def device_of(worker: int) -> torch.device:
    """The worker's own accelerator, or the CPU."""
    count = torch.cuda.device_count()
    return torch.device("cuda", worker % count) if count else torch.device("cpu")


def set_threads(workers: int) -> None:
    """Share the cores between the workers of this machine."""
    if workers > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


@contextmanager
def others(count: int, work: Callable[[int], object]) -> Iterator[list[Any]]:
    """``work(1)`` … ``work(count)`` in processes of their own while the body does worker 0's part.

    One that fails says why in a line, of one that is killed a line tells, and each leaves its part to the others. None
    outlives this process.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(work, number, os.getpid())) for number in range(1, count + 1)]
    with _deaf_to_interrupts():
        for process in processes:
            process.start()
    try:
        yield processes
        finished(processes)
        for number, process in enumerate(processes, start=1):
            if (code := process.exitcode or 0) < 0:
                print(f"worker {number}: ended by signal {-code}; the others did its part", file=sys.stderr)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def finished(processes: list[Any]) -> bool:
    """Wait for the processes; whether one of them did its work to the end."""
    for process in processes:
        process.join()
    return any(process.exitcode == 0 for process in processes)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; what is started here leaves it to the first, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(work: Callable[[int], object], number: int, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        work(number)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"worker {number}: {' '.join(str(error).split())}")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
