"""Worker processes on one machine, which all make the same call and share results in files or a study's storage."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.multiprocessing as multiprocessing

Result = TypeVar("Result")


def device_of(worker: int) -> torch.device:
    """The accelerator of the worker with this number, or the CPU."""
    count = torch.cuda.device_count()
    return torch.device("cuda", worker % count) if count else torch.device("cpu")


def run_workers(count: int, work: Callable[[], Result], others: Callable[[int], object]) -> Result:
    """Call ``work`` as worker 0, while the other ``count`` - 1 workers run in processes, and return its result.

    A worker that fails or is killed is reported in one line, and the others take over its part. The same is true of
    worker 0 if it runs out of memory. No worker outlives this process.

    Args:
        others: does the part of the worker whose number it is given; must be picklable.

    Raises:
        MemoryError: memory does not suffice for any worker.
    """
    with _running(count, others) as processes:
        _set_threads(count)
        try:
            return work()
        except MemoryError as error:
            if not processes:
                raise
            print(f"worker 0: {error}; the others continue", file=sys.stderr)
            if not _any_finished(processes):
                raise
            return work()  # finds the others' results


def _set_threads(workers: int) -> None:
    """Share the cores between the workers of this machine."""
    if workers > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


@contextmanager
def _running(count: int, work: Callable[[int], object]) -> Iterator[list[Any]]:
    """Run ``work(1)`` … ``work(count - 1)`` in processes, which are yielded, and wait for them at the end."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(work, number, count, os.getpid())) for number in range(1, count)]
    with _ignoring_interrupts():
        for process in processes:
            process.start()
    try:
        yield processes
        _any_finished(processes)
        for number, process in enumerate(processes, start=1):
            if (code := process.exitcode or 0) < 0:
                print(f"worker {number}: ended by signal {-code}; the others did its part", file=sys.stderr)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _any_finished(processes: list[Any]) -> bool:
    """Wait for the processes, and return whether one of them did its work to the end."""
    for process in processes:
        process.join()
    return any(process.exitcode == 0 for process in processes)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those started here leave it to the first, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _work(work: Callable[[int], object], number: int, count: int, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _set_threads(count)
    try:
        work(number)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"worker {number}: {' '.join(str(error).split())}")


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
