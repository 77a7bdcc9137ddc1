"""Several workers on one machine: real processes, which die, run out of memory and are interrupted."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from processes import fork, kill_self
from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.models.memory import within_memory
from ropewalk.search.targets import TargetSearch
from tiny_models import WINDOW, tiny_llama
from tiny_runs import token_store

CONFIG = SearchConfig(
    name="tiny",
    trials=12,
    initial_population=6,
    population_size=3,
    num_parents=3,
    documents=2,
    workers=2,
    heartbeat_seconds=1,
)


def is_first() -> bool:
    return multiprocessing.parent_process() is None


def watched_llama(log: Path, at_pass: Callable[[int], None], pause: float = 0.0) -> Any:
    """A tiny model that writes the process of each forward pass to ``log`` and calls ``at_pass`` with its number."""
    model, passes = tiny_llama(), []

    def hook(*_: Any) -> None:
        passes.append(0)
        with log.open("a") as out:
            out.write(f"{os.getpid()}\n")
        time.sleep(pause)
        at_pass(len(passes))

    model.model.register_forward_pre_hook(hook)
    return model


def nothing(number: int) -> None:
    pass


def die_if_second(number: int) -> None:
    if number == 2 and not is_first():
        kill_self()


def wait_for_company(log: Path, number: int) -> None:
    """Let the other worker begin before this one has done everything."""
    while number == 3 and len(set(log.read_text().split())) < 2:
        time.sleep(0.05)


def wait_then_die_if_second(log: Path, number: int) -> None:
    if is_first():
        wait_for_company(log, number)
    die_if_second(number)


def fill_memory_if_first(log: Path, number: int) -> None:
    if is_first():
        wait_for_company(log, number)
        if number == 3:
            torch.empty(2**60)


def search(folder: Path, at_pass: Callable[[int], None], pause: float = 0.0, **changes: Any) -> TargetSearch:
    folder.mkdir(exist_ok=True)
    return TargetSearch(
        partial(watched_llama, folder / "passes", at_pass, pause),
        token_store(folder / "store"),
        config=replace(CONFIG, **changes),
        target=SearchTargetConfig(lengths=[4 * WINDOW]),
        original_length=WINDOW,
        seed=0,
        state_folder=folder / "state",
        label="tiny",
    )


def trials(folder: Path) -> list[Any]:
    path = folder / "state" / str(4 * WINDOW) / "study.db"
    return optuna.load_study(study_name=f"rescale-factors {4 * WINDOW}", storage=f"sqlite:///{path}").trials


def complete(folder: Path) -> int:
    return sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials(folder))


def check(target: TargetSearch, folder: Path) -> None:
    rows = [row for row in target.first()[4 * WINDOW].rows if row["phase"] == "evolution"]
    assert [row["trial"] for row in rows] == list(range(12))
    assert complete(folder) == 12


def test_two_workers_share_the_trials(tmp_path: Path) -> None:
    check(search(tmp_path, partial(wait_for_company, tmp_path / "passes")), tmp_path)
    passes = (tmp_path / "passes").read_text().split()
    assert len(passes) == 12
    assert len(set(passes)) == 2


def test_the_trial_of_a_killed_worker_is_done_by_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(search(tmp_path, partial(wait_then_die_if_second, tmp_path / "passes")), tmp_path)
    assert len((tmp_path / "passes").read_text().split()) == 13
    assert len(trials(tmp_path)) == 13
    assert "worker 1: ended by signal 9; the others did its part" in capsys.readouterr().err.splitlines()


def test_out_of_memory_gives_one_line_and_the_other_worker_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(search(tmp_path, partial(fill_memory_if_first, tmp_path / "passes")), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert lines == [
        "worker 0: out of memory; lower search.batch_tokens, found 16384 (a pass holds one document at least), or "
        "search.workers, found 2, or take model.dtype=bfloat16; the others continue"
    ]


def fill_memory(number: int) -> None:
    if number == 3:
        torch.empty(2**60)


def test_out_of_memory_alone_gives_one_line_and_the_trial_is_kept(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"^out of memory; lower search\.batch_tokens, found 16384") as raised:
        search(tmp_path, fill_memory, workers=1).first()
    assert "\n" not in str(raised.value)
    states = [trial.state.name for trial in trials(tmp_path)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    check(search(tmp_path, nothing, workers=1), tmp_path)


def test_out_of_memory_in_a_gradient_step_says_what_to_lower() -> None:
    with pytest.raises(MemoryError, match=r"^out of memory; less rows$"), within_memory("less rows"):
        torch.empty(2**60)
    with pytest.raises(MemoryError, match=r"^out of memory; less rows$"), within_memory("less rows"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(RuntimeError, match="shape"), within_memory("less rows"):
        torch.ones(2).view(3)


def interrupted(folder: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        search(folder, partial(wait_for_company, folder / "passes"), pause=0.5).first()
    except KeyboardInterrupt:
        sys.exit(130)


def living(group: int) -> list[int]:
    """Processes of a group that have not ended; one that has may wait for its parent to take note."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                processes.append(int(path.parent.name))
    return processes


def test_ctrl_c_leaves_no_worker_and_the_same_call_resumes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main = fork(lambda: interrupted(tmp_path))
    start = time.monotonic()
    while not (tmp_path / "passes").exists() or len(set((tmp_path / "passes").read_text().split())) < 2:
        assert time.monotonic() - start < 240
        assert main.is_alive()
        time.sleep(0.05)
    assert main.pid is not None
    os.killpg(main.pid, signal.SIGINT)
    main.join(120)
    assert main.exitcode == 130
    ended = time.monotonic()
    while alive := living(main.pid):
        # Python's own tracker of shared resources ends a moment after the process it serves.
        assert time.monotonic() - ended < 10, f"{alive} live on"
        time.sleep(0.05)
    assert "leaked" not in capfd.readouterr().err
    before = complete(tmp_path)
    assert before < 12
    paid = len((tmp_path / "passes").read_text().split())
    check(search(tmp_path, nothing, workers=1), tmp_path)
    assert len((tmp_path / "passes").read_text().split()) - paid == 12 - before
