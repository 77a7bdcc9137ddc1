"""Workers that know of each other only through a storage do each position once and agree on the end."""

import os
import signal
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages._heartbeat import HeartbeatThread
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.orm import loading

from processes import fork, fork_until_killed, kill_self
from ropewalk.search.distributed import REASON, FailedTrial, done_by_position, open_storage, run_schedule
from ropewalk.search.distributed.locks import in_turn, locked
from ropewalk.search.distributed.storage import SharedStorage


@contextmanager
def another_worker(folder: Path) -> Iterator[None]:
    """As long as the body runs, somebody else is at the study."""
    storage, study = open_at(folder)
    with locked(storage, study.study_name, shared=True):
        yield
    storage.engine.dispose()


def open_at(folder: Path) -> tuple[SharedStorage, optuna.Study]:
    storage = open_storage(None, folder=folder, heartbeat_seconds=1)
    return storage, optuna.create_study(storage=storage, study_name="numbers", load_if_exists=True)


def worker(
    folder: Path,
    *,
    length: int,
    pause: float = 0.0,
    kill_at: int = -1,
    stop_at: int = -1,
) -> list[float]:
    """Values of a schedule whose position p is worth p; each one read is a line in ``folder``/reads."""

    def read(trial: Trial, position: int) -> float:
        time.sleep(pause)
        with (folder / "reads").open("a") as out:
            out.write(f"{position} {os.getpid()}\n")
        if position == kill_at:
            kill_self()
        if position == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1)  # for a test that wakes it for a moment
        return float(position)

    storage, study = open_at(folder)
    return [trial.values[0] for trial in run_schedule(study, storage, read, length=length, poll=0.05)]


def is_locked(database: Path) -> bool:
    with closing(sqlite3.connect(database, timeout=0.5)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
        connection.rollback()
    return False


def reads(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in (folder / "reads").read_text().splitlines()]


def test_two_workers_do_each_position_once(tmp_path: Path) -> None:
    open_at(tmp_path)[0].engine.dispose()
    other = fork(lambda: worker(tmp_path, length=12, pause=0.1))
    assert worker(tmp_path, length=12, pause=0.1) == list(map(float, range(12)))
    other.join(60)
    assert other.exitcode == 0
    assert sorted(reads(tmp_path)) == list(range(12))
    assert len({line.split()[1] for line in (tmp_path / "reads").read_text().splitlines()}) == 2


def test_the_trial_of_a_dead_worker_is_done_by_another(tmp_path: Path) -> None:
    with another_worker(tmp_path):
        fork_until_killed(lambda: worker(tmp_path, length=6, kill_at=3))
        assert worker(tmp_path, length=6) == list(map(float, range(6)))
    # When the dead worker's turn comes depends on how fast the others are.
    assert reads(tmp_path)[:4] == [0, 1, 2, 3]
    assert sorted(reads(tmp_path)[4:]) == [3, 4, 5]


def test_where_all_others_have_ended_a_left_trial_is_done_first(tmp_path: Path) -> None:
    fork_until_killed(lambda: worker(tmp_path, length=6, kill_at=3))
    assert worker(tmp_path, length=6) == list(map(float, range(6)))
    assert reads(tmp_path) == [0, 1, 2, 3, 3, 4, 5]


def test_the_trial_of_a_worker_that_lives_here_is_left_to_it(tmp_path: Path) -> None:
    open_at(tmp_path)[0].engine.dispose()
    other = fork(lambda: worker(tmp_path, length=2, pause=2.0))
    while not len(open_at(tmp_path)[1].trials):
        time.sleep(0.05)
    assert worker(tmp_path, length=2, pause=0.1) == [0.0, 1.0]
    other.join(60)
    assert other.exitcode == 0
    assert sorted(reads(tmp_path)) == [0, 1]


def test_what_is_done_in_turn_is_done_by_one_at_a_time_and_kept_when_that_one_is_killed(tmp_path: Path) -> None:
    def turn(*, until: int) -> list[int]:
        storage, study = open_at(tmp_path)

        def work(kept: dict[str, Any], keep: Callable[[str, Any], None]) -> list[int]:
            for number in range(len(kept), 6):
                with (tmp_path / "reads").open("a") as out:
                    out.write(f"{number} {os.getpid()}\n")
                if number == until:
                    kill_self()
                time.sleep(0.1)
                keep(str(number), number)
            return [*kept.values(), *range(len(kept), 6)]

        return in_turn(study, storage, "numbers", work)

    open_at(tmp_path)[0].engine.dispose()
    killed, other = fork(lambda: turn(until=3)), fork(lambda: turn(until=6))
    killed.join(60)
    other.join(60)
    assert (killed.exitcode, other.exitcode) in ((-9, 0), (0, 0))  # where the other came first
    assert turn(until=0) == list(range(6))
    lines = (tmp_path / "reads").read_text().splitlines()
    assert len({line.split()[1] for line in lines}) == (2 if killed.exitcode else 1)
    assert reads(tmp_path) == ([0, 1, 2, 3, 3, 4, 5] if killed.exitcode else list(range(6)))


def test_a_worker_that_slept_for_long_finds_its_trial_done_and_resumes(tmp_path: Path) -> None:
    def sleeper() -> None:
        process = worker(tmp_path, length=6, stop_at=3)
        (tmp_path / "found").write_text(repr(process))

    process = fork(sleeper)
    assert process.pid is not None
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    while is_locked(tmp_path / "study.db"):
        # Its heartbeat was being written.
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert worker(tmp_path, length=6) == list(map(float, range(6)))
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "found").read_text() == repr(list(map(float, range(6))))


def test_a_worker_that_died_before_its_first_heartbeat_is_missed_too(tmp_path: Path) -> None:
    storage, study = open_at(tmp_path)
    study.ask()
    storage.engine.dispose()
    start = time.monotonic()
    with another_worker(tmp_path):
        assert worker(tmp_path, length=3) == [0.0, 1.0, 2.0]
    assert time.monotonic() - start > 3
    assert reads(tmp_path) == [1, 2, 0]


def test_a_position_whose_trial_failed_when_nobody_queued_it_again_is_done(tmp_path: Path) -> None:
    storage, study = open_at(tmp_path)
    study.tell(study.ask(), state=TrialState.FAIL)
    storage.engine.dispose()
    assert worker(tmp_path, length=2) == [0.0, 1.0]
    assert reads(tmp_path) == [0, 1]


def test_a_candidate_that_cannot_be_read_is_done_with_its_reason(tmp_path: Path) -> None:
    def read(trial: Trial, position: int) -> float:
        if position == 1:
            raise FailedTrial("no loss")
        return 0.0

    storage, study = open_at(tmp_path)
    done = run_schedule(study, storage, read, length=3)
    assert [trial.state for trial in done] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert done[1].user_attrs[REASON] == "no loss"
    assert len(study.trials) == 3
    storage.engine.dispose()


def test_a_trial_that_is_interrupted_goes_back_to_the_queue(tmp_path: Path) -> None:
    def read(trial: Trial, position: int) -> float:
        if position == 1:
            raise KeyboardInterrupt
        return 0.0

    storage, study = open_at(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_schedule(study, storage, read, length=3)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    storage.engine.dispose()
    assert worker(tmp_path, length=3) == [0.0, 1.0, 2.0]


def test_ctrl_c_amid_the_storages_own_work_is_neither_lost_nor_masked(tmp_path: Path) -> None:
    """Once while a trial's result is written, and once after it, where Optuna would fail with another error."""
    numbers: list[int] = []
    storage, study = open_at(tmp_path)
    write = storage.set_trial_state_values

    def interrupted(trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if not state.is_finished():
            return write(trial_id, state, values)
        numbers.append(trial_id)
        if len(numbers) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        result = write(trial_id, state, values)
        if len(numbers) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    study._storage.set_trial_state_values = interrupted  # type: ignore[method-assign]

    def read(trial: Trial, position: int) -> float:
        return float(position)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_schedule(study, storage, read, length=5, poll=0.05)
    assert [trial.values[0] for trial in run_schedule(study, storage, read, length=5, poll=0.05)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("within_trial", [False, True])
def test_ctrl_c_amid_a_read_of_the_storage_leaves_no_lock(
    within_trial: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lock left behind, this worker and another that writes would wait for each other."""
    storage, study = open_at(tmp_path)
    make_reader, write = loading._instance_processor, storage.set_trial_state_values
    locked: list[bool] = []

    def interrupted(*args: Any, **more: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(loading, "_instance_processor", make_reader)
            os.kill(os.getpid(), signal.SIGINT)
        return make_reader(*args, **more)

    def written(trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state.is_finished():
            locked.append(is_locked(tmp_path / "study.db"))
        return write(trial_id, state, values)

    def read(trial: Trial, position: int) -> float:
        if position == 1:
            monkeypatch.setattr(loading, "_instance_processor", interrupted)
            if within_trial:
                study.get_trials(deepcopy=False)
        return float(position)

    storage.set_trial_state_values = written  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_schedule(study, storage, read, length=3)
    assert locked == [False, False]
    assert not is_locked(tmp_path / "study.db")
    storage.engine.dispose()
    assert worker(tmp_path, length=3) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("method", "found"), [("start", [0.0]), ("join", [0.0, 1.0])])
def test_ctrl_c_amid_a_heartbeats_start_or_end_leaves_no_thread(
    method: str, found: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, study = open_at(tmp_path)
    original, calls = getattr(HeartbeatThread, method), list[int]()

    def interrupted(thread: HeartbeatThread) -> None:
        calls.append(0)
        if method == "start":
            original(thread)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        if method == "join":
            original(thread)

    monkeypatch.setattr(HeartbeatThread, method, interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_schedule(study, storage, lambda trial, position: float(position), length=3)
    assert threading.active_count() == before
    assert [trial.values[0] for trial in study.trials if trial.values] == found
    assert study.trials[-1].state == (TrialState.WAITING if method == "start" else TrialState.COMPLETE)
    storage.engine.dispose()
    assert worker(tmp_path, length=3) == [0.0, 1.0, 2.0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_callback_that_drops_errors_is_not_lost(tmp_path: Path) -> None:
    class Node:
        pass

    storage, study = open_at(tmp_path)

    def read(trial: Trial, position: int) -> float:
        if position == 1 and len(study.trials) == 2:
            node = Node()
            noted = weakref.ref(node, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del node
            assert noted() is None
        return float(position)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_schedule(study, storage, read, length=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert [trial.values for trial in study.trials] == [[0.0], [1.0]]
    storage.engine.dispose()
    assert worker(tmp_path, length=3) == [0.0, 1.0, 2.0]


def end_at_sum(limit: float) -> object:
    def end(trials: Sequence[FrozenTrial]) -> int | None:
        total = 0.0
        for count, trial in enumerate(trials, start=1):
            total += trial.values[0]
            if total >= limit:
                return count
        return None

    return end


def test_the_end_is_the_same_whatever_others_did_beyond_it(tmp_path: Path) -> None:
    storage, study = open_at(tmp_path)
    for value in (1.0, 1.0):
        study.tell(study.ask(), value)
    slow = study.ask()  # position 2, by a worker that takes its time
    for value in (1.0, 1.0, 1.0):
        study.tell(study.ask(), value)
    # Positions 0, 1, 3, 4, 5 make 5.0: enough, so nothing new is begun; but the end needs position 2.
    asked: list[int] = []

    def read(trial: Trial, position: int) -> float:
        asked.append(position)
        return 1.0

    def finish(done: dict[int, FrozenTrial]) -> None:
        if 2 not in done:
            study.tell(slow, 1.0)

    with another_worker(tmp_path):
        done = run_schedule(study, storage, read, length=20, end=end_at_sum(4.0), on_done=finish, poll=0.01)  # type: ignore[arg-type]
    assert not asked
    assert [trial.number for trial in done] == [0, 1, 2, 3]
    assert list(done_by_position(study.trials)) == [0, 1, 2, 3, 4, 5]
    storage.engine.dispose()


@pytest.mark.parametrize("address", ["not an address", "nosuch://host/name", "mysql+pymysql://user@host/name"])
def test_a_storage_that_is_no_database_address_gives_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match=r"search\.storage must be a database address such as postgresql") as raised:
        open_storage(address, folder=tmp_path, heartbeat_seconds=1)
    assert "\n" not in str(raised.value)
