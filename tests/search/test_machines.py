"""Machines, here processes with folders of their own, that share nothing but a PostgreSQL database."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from postgresql import Cluster
from processes import fork, fork_until_killed
from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.models.factors import SearchedFactors
from ropewalk.search.distributed import open_storage, publish
from ropewalk.search.history import provenance
from ropewalk.search.targets import TargetSearch
from tiny_models import WINDOW, tiny_llama
from tiny_runs import SEARCH, search, token_store

CONFIG = replace(SEARCH, gradient_steps=3, trials=12, initial_population=6, heartbeat_seconds=1, storage_timeout=60)


def machine(folder: Path, config: SearchConfig, **more: Any) -> Callable[[], None]:
    """Its search, whose result is left in ``folder``/result."""

    def work() -> None:
        result, _ = search(folder, config=config, **more)
        (folder / "result").write_text(json.dumps([result.best.to_json(), result.loss, result.rows]))

    folder.mkdir()
    return work


def result(folder: Path) -> Any:
    return json.loads((folder / "result").read_text())


def reads(folder: Path, kind: str = "read") -> int:
    log = folder / "reads"
    return sum(line.startswith(kind) for line in log.read_text().splitlines()) if log.is_file() else 0


def wait_for(holds: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < 240
        time.sleep(0.02)


def trials(address: str) -> list[Any]:
    return optuna.load_study(study_name="rescale-factors", storage=address).trials


def test_one_machine_dies_one_comes_late_and_all_say_the_same(tmp_path: Path, address: str) -> None:
    config = replace(CONFIG, storage=address)
    dying = fork(machine(tmp_path / "dying", config, kill_at="read 7", pause=0.3))
    wait_for(lambda: reads(tmp_path / "dying") >= 6)
    # However slow the others are, something is left for the one that comes late.
    steady = fork(machine(tmp_path / "steady", config, pause=0.5, waits_for=tmp_path / "late" / "reads"))
    dying.join(240)
    assert dying.exitcode == -9
    late = fork(machine(tmp_path / "late", config, pause=0.1))
    for process in (steady, late):
        process.join(240)
        assert process.exitcode == 0
    assert result(tmp_path / "steady") == result(tmp_path / "late")
    assert reads(tmp_path / "late") > 0
    rows = [row for row in result(tmp_path / "late")[2] if row["phase"] == "evolution"]
    assert [row["trial"] for row in rows] == list(range(12))
    done = trials(address)
    complete = [trial for trial in done if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == 12
    # The dead machine's trial was done again, and nothing else was paid twice.
    paid = sum(reads(tmp_path / name) for name in ("dying", "steady", "late"))
    free = sum(trial.user_attrs["forward_tokens"] == 0 for trial in complete)
    assert paid <= 6 + (12 - free) + 1
    assert sum(reads(tmp_path / name, "step") for name in ("dying", "steady", "late")) == 3


def test_a_gradient_whose_machine_died_is_taken_up_by_another_where_it_was(tmp_path: Path, address: str) -> None:
    config = replace(CONFIG, gradient_steps=6)
    undisturbed, _ = search(tmp_path / "undisturbed", config=config)
    config = replace(config, storage=address)
    fork_until_killed(machine(tmp_path / "dying", config, kill_at="step 4"))
    machine(tmp_path / "other", config)()
    assert result(tmp_path / "other") == [undisturbed.best.to_json(), undisturbed.loss, undisturbed.rows]
    assert 0 < reads(tmp_path / "other", "step") < 6
    assert sum(reads(tmp_path / name, "step") for name in ("dying", "other")) <= 6 + 1


def test_a_machine_that_comes_when_all_is_done_pays_nothing(tmp_path: Path, address: str) -> None:
    config = replace(CONFIG, storage=address)
    first = machine(tmp_path / "first", config)
    first()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "reads").touch()
    again, _ = search(tmp_path / "second", config=config)
    assert [again.best.to_json(), again.loss, again.rows] == result(tmp_path / "first")
    assert reads(tmp_path / "second") == reads(tmp_path / "second", "step") == 0


def test_a_database_that_is_away_for_some_seconds_is_waited_for(tmp_path: Path, address: str, cluster: Cluster) -> None:
    undisturbed, _ = search(tmp_path / "undisturbed", config=CONFIG)
    running = fork(machine(tmp_path / "machine", replace(CONFIG, storage=address), pause=0.2))
    wait_for(lambda: reads(tmp_path / "machine") >= 6)
    with cluster.stopped():
        time.sleep(5)
        assert running.is_alive()
    running.join(240)
    assert running.exitcode == 0
    assert result(tmp_path / "machine") == [undisturbed.best.to_json(), undisturbed.loss, undisturbed.rows]
    assert reads(tmp_path / "machine") <= reads(tmp_path / "undisturbed") + 1


@contextmanager
def lost_connections(address: str, *, before: Sequence[int], beginning: str = "") -> Iterator[list[str]]:
    """The statements to the database that begin so; the connection is lost just before some of them, counted from 1."""
    statements: list[str] = []

    def cut(connection: Connection, cursor: Any, sql: str, *_: Any) -> None:
        if connection.engine.url.render_as_string() != address or not sql.startswith(beginning):
            return
        statements.append(sql)
        if len(statements) in before:
            backend = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
            # Under another address, so that its own statements do not count.
            with create_engine(f"{address}?application_name=other").connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:backend, 5000)"), {"backend": backend})

    event.listen(Engine, "before_cursor_execute", cut)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", cut)


@pytest.mark.parametrize("statement", [1, 25, 36, 48, 84, 88, 100])
def test_a_connection_lost_before_the_first_trial(tmp_path: Path, address: str, statement: int) -> None:
    # Tables, the study, the published methods, the progress bar, the locks and the first draw, in this order.
    with lost_connections(address, before=(statement,)) as statements:
        cut_off, _ = search(tmp_path, config=replace(CONFIG, storage=address, trials=1, gradient_steps=1))
    assert len(statements) > statement
    assert [row["phase"] for row in cut_off.rows].count("evolution") == 1


@pytest.mark.parametrize("table", ["trials", "trial_params", "trial_values"])
def test_a_connection_lost_amid_a_trial(tmp_path: Path, address: str, table: str) -> None:
    undisturbed, _ = search(tmp_path / "undisturbed", config=CONFIG)
    with lost_connections(address, before=(8, 29), beginning=f"INSERT INTO {table} ") as statements:
        cut_off, _ = search(tmp_path / "machine", config=replace(CONFIG, storage=address))
    assert len(statements) > 8
    assert [cut_off.best, cut_off.loss, cut_off.rows] == [undisturbed.best, undisturbed.loss, undisturbed.rows]


def test_a_database_that_never_comes_back_gives_one_line_and_nothing_is_lost(
    tmp_path: Path, address: str, cluster: Cluster
) -> None:
    undisturbed, _ = search(tmp_path / "undisturbed", config=CONFIG)
    folder, config = tmp_path / "machine", replace(CONFIG, storage=address, storage_timeout=2)
    folder.mkdir()

    def gives_up() -> None:
        with pytest.raises(
            ConnectionError, match=r"search\.storage has been away for 2 s .*run the same command"
        ) as raised:
            search(folder, config=config, pause=0.2)
        assert "\n" not in str(raised.value)
        (folder / "told").touch()

    running = fork(gives_up)
    wait_for(lambda: reads(folder) >= 6)
    with cluster.stopped():
        running.join(120)
        assert (folder / "told").exists()
        with pytest.raises(ConnectionError, match=r"search\.storage does not answer at postgresql\+psycopg://"):
            open_storage(address, folder=folder, heartbeat_seconds=1)
    resumed, _ = search(folder, config=config)
    assert [resumed.best, resumed.loss, resumed.rows] == [undisturbed.best, undisturbed.loss, undisturbed.rows]
    assert reads(folder) <= reads(tmp_path / "undisturbed") + 1


def test_ctrl_c_while_the_database_is_away_is_not_kept_waiting(tmp_path: Path, address: str, cluster: Cluster) -> None:
    undisturbed, _ = search(tmp_path / "undisturbed", config=CONFIG)
    folder, config = tmp_path / "machine", replace(CONFIG, storage=address, storage_timeout=600)
    folder.mkdir()

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            search(folder, config=config, pause=0.2)

    running = fork(interrupted)
    wait_for(lambda: reads(folder) >= 6)
    with cluster.stopped():
        time.sleep(2)
        assert running.pid is not None
        os.kill(running.pid, signal.SIGINT)
        running.join(30)
        assert running.exitcode == 0
    resumed, _ = search(folder, config=config)
    assert [resumed.best, resumed.loss, resumed.rows] == [undisturbed.best, undisturbed.loss, undisturbed.rows]


def test_one_machine_alone_is_killed_and_resumes_to_the_bit(tmp_path: Path, address: str) -> None:
    undisturbed, _ = search(tmp_path / "undisturbed", config=CONFIG)
    # With a heartbeat that nobody waits for.
    config = replace(CONFIG, storage=address, heartbeat_seconds=600)
    fork_until_killed(machine(tmp_path / "dying", config, kill_at="read 9"))
    machine(tmp_path / "again", config)()
    assert result(tmp_path / "again") == [undisturbed.best.to_json(), undisturbed.loss, undisturbed.rows]
    paid = sum(reads(tmp_path / name) for name in ("dying", "again"))
    assert paid <= reads(tmp_path / "undisturbed") + 1


def test_tables_that_two_machines_make_at_once(tmp_path: Path, address: str) -> None:
    def opens() -> None:
        open_storage(address, folder=tmp_path, heartbeat_seconds=1).engine.dispose()

    processes = [fork(opens) for _ in range(4)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4


def published(folder: Path, address: str, *, kill: bool = False, trials: int = 6) -> None:
    """The stage of one machine: search, then publish what was found into ``folder``."""
    from processes import kill_self

    target = TargetSearch(
        tiny_llama,
        token_store(folder / "store"),
        config=replace(CONFIG, documents=2, trials=trials, storage=address),
        target=SearchTargetConfig(lengths=[4 * WINDOW]),
        original_length=WINDOW,
        seed=0,
        state_folder=folder / "state",
        label="tiny",
    )
    best = target.first()[4 * WINDOW]

    def log_search(stage: str, rows: list[dict[str, Any]], table: Path) -> None:
        if kill:
            kill_self()
        with (folder.parent / "tracked").open("a") as out:
            out.write(folder.name + "\n")

    factors = SearchedFactors(best.best, provenance(best, search="tiny", commit="")).to_json()
    publish(
        target,
        {4 * WINDOW: best},
        {"first.json": factors},
        stage="search_first",
        output=folder,
        log_search=log_search,
        log_file=lambda path: None,
    )


def test_a_result_is_published_once_and_lies_on_every_machine(tmp_path: Path, address: str) -> None:
    folders = [tmp_path / name for name in "abc"]
    fork_until_killed(lambda: published(tmp_path / "dead", address, kill=True))
    processes = [fork(lambda folder=folder: published(folder, address)) for folder in folders]  # type: ignore[misc]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert len((tmp_path / "tracked").read_text().splitlines()) == 1
    assert len({(folder / "factors" / "first.json").read_text() for folder in folders}) == 1


def test_a_search_that_goes_further_is_published_anew(tmp_path: Path, address: str) -> None:
    folder = tmp_path / "a"
    for trials, tracked in ((6, 1), (6, 1), (9, 2)):
        published(folder, address, trials=trials)
        assert json.loads((folder / "factors" / "first.json").read_text())["provenance"]["trials"] == trials
        assert len((tmp_path / "tracked").read_text().splitlines()) == tracked
    published(tmp_path / "b", address, trials=9)
    assert (tmp_path / "b" / "factors" / "first.json").read_text() == (folder / "factors" / "first.json").read_text()
    assert len((tmp_path / "tracked").read_text().splitlines()) == 2
