"""Where a study is kept: a file of its own beside the search's state, or a database that many machines share."""

import json
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage
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

from ropewalk.config import SearchConfig
from ropewalk.search.distributed.interrupts import INTERRUPTS
from ropewalk.search.distributed.trials import requeue

IDENTITY = "identity"
"""Attribute of a study: what is searched; another search under the same name is refused."""
_KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""Settings of libpq: a machine that is gone without a word is noticed after a minute."""
_SILENT = text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' "
    "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
)
_ATTEMPTS = 10
Result = TypeVar("Result")


class _QuickConnection(sqlite3.Connection):
    """Leaves flushing to the system: a trial is some twenty commits, and a killed process loses none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous = OFF")


class SharedStorage(RDBStorage):
    """Optuna's database storage, which waits at most ``timeout`` seconds for a database that is away.

    Optuna never takes over a trial whose worker died before its first heartbeat; this class does. If the database was
    away for longer than the grace period, Optuna takes over the trials of all workers at once; here, every worker first
    gets time to send another heartbeat.
    """

    def __init__(self, url: str, *, timeout: float, heartbeat_seconds: int, engine_kwargs: dict[str, Any]) -> None:
        self._timeout, self._silent_since = timeout, dict[int, float]()
        self._grace_seconds = 3 * heartbeat_seconds
        self._judges_from, self._has_given_up = 0.0, False
        super().__init__(
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat_seconds,
            grace_period=self._grace_seconds,
            heartbeat_stale_trial_callback=requeue,
        )
        INTERRUPTS.watch(self.engine)
        if self.engine.dialect.name != "sqlite":
            event.listen(self.engine, "do_connect", self._connect)

    def _connect(self, dialect: Any, record: Any, args: Any, kwargs: Any) -> Any:
        start = time.monotonic()
        while True:
            try:
                return dialect.connect(*args, **kwargs)
            except dialect.loaded_dbapi.OperationalError as error:
                self._judges_from = time.monotonic() + self._grace_seconds
                if INTERRUPTS.caught and threading.current_thread() is threading.main_thread():
                    raise KeyboardInterrupt from None
                self._has_given_up |= time.monotonic() - start >= self._timeout
                if self._has_given_up or INTERRUPTS.caught:
                    raise ConnectionError(
                        f"search.storage has been away for {self._timeout:.0f} s ({_first_line(error)}); nothing is "
                        "lost: start it and run the same command again"
                    ) from None
                time.sleep(min(1.0, self._timeout))

    def record_heartbeat(self, trial_id: int) -> None:
        # This runs in a thread of its own; the trial's own thread reports what is wrong.
        with suppress(ConnectionError, StorageInternalError, DBAPIError, PendingRollbackError):
            super().record_heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        with self.engine.connect() as connection:
            silent = list(connection.scalars(_SILENT, {"study": study_id}))
        now = time.monotonic()
        self._silent_since = {trial: self._silent_since.get(trial, now) for trial in silent}
        stale = super()._get_stale_trial_ids(study_id)
        if now < self._judges_from:
            return []
        return [*stale, *(trial for trial, since in self._silent_since.items() if now - since > self._grace_seconds)]


def persistently(call: Callable[[], Result]) -> Result:
    """Repeat a call that lost its connection; connecting again waits for the database."""
    for _ in range(_ATTEMPTS):
        try:
            return call()
        except (StorageInternalError, DBAPIError, PendingRollbackError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            # Where Optuna asks again over the lost connection, SQLAlchemy wants a rollback first.
            lost = isinstance(cause, PendingRollbackError) or (
                isinstance(cause, DBAPIError) and cause.connection_invalidated
            )
            if not lost:
                raise
            time.sleep(0.2)
    return call()


def open_storage(url: str | None, *, folder: Path, heartbeat_seconds: int, timeout: float = 0.0) -> SharedStorage:
    """The database at ``url``, or ``folder``/study.db.

    Raises:
        ValueError: ``url`` is no address of a database, or its driver is not installed.
        ConnectionError: nothing answers there.
    """
    # Optuna warns of every trial that failed; the schedule keeps the reason.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if url is None:
            url = f"sqlite:///{(folder / 'study.db').resolve()}"
            # Other workers of this machine write too.
            options: dict[str, Any] = {"connect_args": {"factory": _QuickConnection, "timeout": 60}}
        else:
            kind, driver = make_url(url).get_backend_name(), make_url(url).get_driver_name()
            # Only these two have locks that `locked` can use.
            if kind not in ("postgresql", "sqlite"):
                raise ValueError(
                    "search.storage must be a database address such as postgresql+psycopg://user@host/name or "
                    f"sqlite:///path, found one of {kind}"
                )
            options = {"pool_pre_ping": True, "connect_args": _KEEPALIVE if driver.startswith("psycopg") else {}}
        create = partial(
            SharedStorage, url, timeout=timeout, heartbeat_seconds=heartbeat_seconds, engine_kwargs=options
        )
        return persistently(lambda: _create(create))
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


@contextmanager
def storage_of(config: SearchConfig, folder: Path) -> Iterator[SharedStorage]:
    """`open_storage` as ``config`` says, closed at the end."""
    storage = open_storage(
        config.storage, folder=folder, heartbeat_seconds=config.heartbeat_seconds, timeout=config.storage_timeout
    )
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _create(create: Callable[[], SharedStorage]) -> SharedStorage:
    """Try again where several workers create the same tables at once, so that all but one of them fail."""
    for _ in range(5):
        with warnings.catch_warnings(), suppress(ProgrammingError, IntegrityError):
            warnings.simplefilter("ignore", ExperimentalWarning)
            try:
                return create()
            except DBAPIError as error:
                if "already exists" not in str(error):
                    raise
        time.sleep(0.5)
    return create()


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def open_study(storage: RDBStorage, name: str, *, pruner: BasePruner | None, identity: dict[str, Any]) -> Study:
    """The study ``name``, created where there is none; raises ValueError where it is of another ``identity``."""
    try:
        study = optuna.create_study(storage=storage, study_name=name, pruner=pruner)
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, pruner=pruner)
    expected = json.loads(json.dumps(identity))
    stored = study.user_attrs.get(IDENTITY)
    if stored is None:
        study.set_user_attr(IDENTITY, expected)
    elif stored != expected:
        different = [key for key in {**stored, **expected} if stored.get(key) != expected.get(key)]
        raise ValueError(
            f"the study {name} in search.storage is of another {', '.join(different)}; "
            "choose another search.study_name or continue with the settings that it was started with"
        )
    return study
