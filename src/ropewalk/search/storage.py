"""Where a study is kept: a file of its own beside the search's state, or a database that many machines share."""

import json
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    PendingRollbackError,
    ProgrammingError,
)

from ropewalk.search.schedule import give_back

IDENTITY = "identity"
"""Study attribute: what the study is of; another study under the same name is refused."""
_LOST_LINE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's: a machine that is gone without a word is noticed after a minute."""
_SILENT = text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' "
    "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
)


class _QuickConnection(sqlite3.Connection):
    """Leaves flushing to the system: a trial is some twenty commits, and a killed process loses none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous = OFF")


class SharedStorage(RDBStorage):
    """Optuna's database storage, which waits for a database that is away and loses sight of no worker.

    A trial whose worker died before its first heartbeat is taken over too, and after the database was away every
    worker gets the time to beat again. A Ctrl-C is raised between two calls of the storage, not amid one.

    Args:
        timeout: seconds that the database may be away; then ConnectionError is raised.
    """

    def __init__(self, url: str, *, timeout: float, heartbeat_seconds: int, engine_kwargs: dict[str, Any]) -> None:
        self._timeout, self._seen_silent = timeout, dict[int, float]()
        self._patience = 3.0 * heartbeat_seconds
        self._judges_from, self._given_up = 0.0, False
        self._interrupts, self._inside = list[int](), False
        super().__init__(
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat_seconds,
            grace_period=3 * heartbeat_seconds,
            heartbeat_stale_trial_callback=give_back,
        )
        if self.engine.dialect.name != "sqlite":
            event.listen(self.engine, "do_connect", self._connect)

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Keep a Ctrl-C for the end of the body; a second one is raised at once.

        Amid a read, its frames would hold a cursor, and with it a lock, while Optuna writes that the trial failed.
        """
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before) or self._inside:
            yield
            return

        def keep(number: int, frame: FrameType | None) -> None:
            self._interrupts.append(number)
            if len(self._interrupts) > 1:
                before(number, frame)

        self._interrupts, self._inside = [], True
        signal.signal(signal.SIGINT, keep)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._inside = False
            if self._interrupts:
                before(signal.SIGINT, None)

    def _again(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call once more what lost its connection on the way: reconnecting waits for the database."""
        begun = time.monotonic()
        while True:
            try:
                return method(self, *args, **more)
            except (StorageInternalError, DBAPIError, PendingRollbackError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                # Where Optuna asks again over the lost connection, SQLAlchemy wants a rollback first.
                lost = isinstance(cause, PendingRollbackError) or (
                    isinstance(cause, DBAPIError) and cause.connection_invalidated
                )
                if not lost or time.monotonic() - begun > self._timeout:
                    raise
                time.sleep(0.2)

    def _connect(self, dialect: Any, record: Any, args: Any, kwargs: Any) -> Any:
        begun = time.monotonic()
        while True:
            try:
                connection = dialect.connect(*args, **kwargs)
            except dialect.loaded_dbapi.OperationalError as error:
                self._judges_from = time.monotonic() + self._patience
                if self._interrupts and threading.current_thread() is threading.main_thread():
                    self._given_up = True
                    raise KeyboardInterrupt from None
                if self._given_up or time.monotonic() - begun >= self._timeout:
                    self._given_up = True
                    raise ConnectionError(
                        f"search.storage has been away for {self._timeout:.0f} s ({_first_line(error)}); nothing is "
                        "lost: start it and run the same command again"
                    ) from None
                time.sleep(min(1.0, self._timeout))
            else:
                return connection

    def record_heartbeat(self, trial_id: int) -> None:
        # In a thread of its own; the trial's own thread tells what is wrong.
        with suppress(ConnectionError, StorageInternalError, DBAPIError, PendingRollbackError):
            super().record_heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        with self.engine.connect() as connection:
            silent = list(connection.scalars(_SILENT, {"study": study_id}))
        now = time.monotonic()
        self._seen_silent = {trial: self._seen_silent.get(trial, now) for trial in silent}
        stale = super()._get_stale_trial_ids(study_id)
        if now < self._judges_from:
            return []
        return [*stale, *(trial for trial, since in self._seen_silent.items() if now - since > self._patience)]


def _persistent(name: str) -> Callable[..., Any]:
    method = getattr(SharedStorage, name)

    @wraps(method)
    def call(storage: SharedStorage, *args: Any, **more: Any) -> Any:
        with storage._uninterrupted():
            return storage._again(method, *args, **more)

    return call


for _name in (*sorted(BaseStorage.__abstractmethods__), "get_best_trial", "_get_trials", "_get_stale_trial_ids"):
    setattr(SharedStorage, _name, _persistent(_name))


def open_storage(url: str | None, *, folder: Path, heartbeat_seconds: int, timeout: float = 0.0) -> SharedStorage:
    """The database at ``url``, or ``folder``/study.db.

    Raises:
        ValueError: the address is not one, or its driver is not installed.
        ConnectionError: nothing answers there.
    """
    # Optuna warns of every trial that failed; the schedule keeps the reason.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        # Other workers of this machine write too.
        options: dict[str, Any] = {"connect_args": {"factory": _QuickConnection, "timeout": 60}}
        address = f"sqlite:///{(folder / 'study.db').resolve()}"
        return _made(
            lambda: SharedStorage(address, timeout=0, heartbeat_seconds=heartbeat_seconds, engine_kwargs=options)
        )
    try:
        driver = make_url(url).get_driver_name()
        options = {"pool_pre_ping": True, "connect_args": _LOST_LINE if driver.startswith("psycopg") else {}}
        return _made(
            lambda: SharedStorage(url, timeout=timeout, heartbeat_seconds=heartbeat_seconds, engine_kwargs=options)
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ValueError(
            "search.storage must be a database address such as postgresql+psycopg://user@host/name whose driver is "
            f"installed (extra `postgres`), found {url}: {_first_line(error)}"
        ) from None
    except DBAPIError as error:
        raise ConnectionError(
            f"search.storage does not answer at {url}; start it and run the same command again "
            f"({_first_line(error.orig)})"
        ) from None


def _made(make: Callable[[], SharedStorage]) -> SharedStorage:
    """Several workers that come first make the same tables at once, and all but one of them fail."""
    for _ in range(5):
        with warnings.catch_warnings(), suppress(ProgrammingError, IntegrityError):
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                return make()
            except DBAPIError as error:
                if "already exists" not in str(error):
                    raise
        time.sleep(0.5)
    return make()


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def open_study(
    storage: RDBStorage, name: str, *, sampler: BaseSampler | None, pruner: BasePruner | None, identity: dict[str, Any]
) -> Study:
    """The study ``name``, made where it is not there.

    Raises:
        ValueError: it is there and of something else; says what differs.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
    wanted = json.loads(json.dumps(identity))
    found = study.user_attrs.get(IDENTITY)
    if found is None:
        study.set_user_attr(IDENTITY, wanted)
    elif found != wanted:
        different = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        raise ValueError(
            f"the study {name} in search.storage is of another {', '.join(different)}; "
            "choose another search.study_name or go on with what it was begun with"
        )
    return study
