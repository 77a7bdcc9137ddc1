"""Worker processes of prepare, each of which reads one task after the other from its standard input.

multiprocessing would either import the main module again in every process, with torch and MLflow (half a gigabyte
each), or fork a process that has threads. A worker started here takes 80 MB and ends with the process that started it.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ropewalk.corpus.parts import ReadSettings, ReadTask, Report, read_shard
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.tokenise import TokenTask, tokenise_part

Task = ReadTask | TokenTask
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, FileNotFoundError, PermissionError, OSError)
}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(task: Task, report: Report) -> None:
    """Do one task in this process."""
    if isinstance(task, ReadTask):
        read_shard(task, report)
    else:
        tokenise_part(task, report)


def work_all(tasks: Sequence[Task], report: Report, *, workers: int) -> None:
    """Do all tasks in ``workers`` processes, or in this one if that is 1.

    Args:
        report: called with the counts of each part, by one thread at a time.

    Raises:
        ValueError, OSError: the first error of a task; the other workers are stopped.
        RuntimeError: a worker was killed, or failed for a reason other than its data.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            work(task, report)
        return
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock, failures = threading.Lock(), []  # type: tuple[threading.Lock, list[Exception]]
    processes = [_start() for _ in range(min(workers, len(tasks)))]

    def feed(process: subprocess.Popen[str]) -> None:
        try:
            _feed(process, waiting, lock, report)
        except Exception as error:
            with lock:
                failures.append(error)
            for other in processes:
                other.kill()

    threads = [threading.Thread(target=feed, args=(process,), daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    if failures:
        raise failures[0]


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "ropewalk.corpus.worker"],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C must reach the parent alone, which ends the workers.
        start_new_session=True,
    )


def _feed(
    process: "subprocess.Popen[str]",
    waiting: "queue.SimpleQueue[Task]",
    lock: threading.Lock,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Give tasks to one worker until none are left, and pass on its reports and errors."""
    assert process.stdin is not None
    assert process.stdout is not None
    while True:
        try:
            task = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(json.dumps({"kind": type(task).__name__, **asdict(task)}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in process.stdout:
            message = json.loads(line)
            if "report" in message:
                with lock:
                    report(message["report"])
            elif "error" in message:
                raise _ERRORS.get(message["error"], RuntimeError)(message["message"])
            else:
                break
        else:
            raise RuntimeError(
                f"a worker process of prepare ended with code {process.wait()}; was it out of memory? "
                "Run the same command again to resume"
            )


def _task(message: dict[str, Any]) -> Task:
    kind = message.pop("kind")
    if kind == "TokenTask":
        return TokenTask(**message)
    return ReadTask(**{**message, "shard": Shard(**message["shard"]), "settings": ReadSettings(**message["settings"])})


def main() -> None:
    """Do the tasks that arrive on standard input, one per line, and answer on standard output."""
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(line)
        # The parent has ended or has no more tasks.
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    while True:
        try:
            work(_task(json.loads(tasks.get())), lambda about: answer({"report": about}))
        except Exception as error:
            kind = next((name for name in _ERRORS if type(error).__name__ == name), None)
            kind = kind or next((name for name, known in _ERRORS.items() if isinstance(error, known)), "RuntimeError")
            answer({"error": kind, "message": " ".join(str(error).split()) or repr(error)})
        else:
            answer({"done": True})


if __name__ == "__main__":
    main()
