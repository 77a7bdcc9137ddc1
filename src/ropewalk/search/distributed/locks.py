"""Locks between the workers of a study, and work that they do in turn under one.

A lock is the operating system's or the database's own and ends with the process that holds it.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy import text

from ropewalk.files import text_hash
from ropewalk.search.distributed.interrupts import INTERRUPTS
from ropewalk.search.distributed.storage import persistently

Keep = Callable[[str, Any], None]
"""Stores a JSON value under a key."""
Result = TypeVar("Result")
_POLL_SECONDS = 0.2
_NOTICE_DEAD_MACHINES = text(
    "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)
_TRY_LOCK = "SELECT pg_try_advisory_lock{}(hashtextextended(:name, 0))"


def in_turn(study: Study, storage: RDBStorage, name: str, work: Callable[[dict[str, Any], Keep], Result]) -> Result:
    """Call ``work``, in one worker at a time among all that share the study, and return its result.

    Args:
        name: prefix of the study's attributes in which the state of the work is kept.
        work: (kept, keep) -> result; ``kept`` holds everything that any worker has passed to ``keep`` before.
    """
    prefix = f"{name}, "

    def turn() -> Result:
        with locked(storage, f"{study.study_name}, {name}") as check:
            assert check is not None

            def keep(key: str, value: Any) -> None:
                check()
                persistently(lambda: study.set_user_attr(prefix + key, value))

            attributes = persistently(lambda: study.user_attrs)
            kept = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
            return work(kept, keep)

    with INTERRUPTS.kept():
        return persistently(turn)


@contextmanager
def locked(
    storage: RDBStorage, name: str, *, shared: bool = False, wait: bool = True
) -> Iterator[Callable[[], None] | None]:
    """Hold the lock ``name`` while the body runs.

    Args:
        shared: other workers may hold it as shared too, but none exclusively.
        wait: wait until the lock is free; if false, and the lock is taken, None is yielded.
    Yields: a check, which raises if the connection was lost, so that another worker may hold the lock by now;
        `persistently` then starts over.
    """
    engine = storage.engine
    if engine.dialect.name == "sqlite":
        with Path(f"{engine.url.database}.{text_hash(name)[:8]}.lock").open("w") as file:

            def lock_file() -> bool:
                try:
                    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            yield (lambda: None) if _acquired(lock_file, wait) else None
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # so that it is closed at the end, and the lock with it
        connection.execute(_NOTICE_DEAD_MACHINES)
        statement = text(_TRY_LOCK.format("_shared" if shared else ""))
        acquired = _acquired(lambda: bool(connection.scalar(statement, {"name": name})), wait)
        yield (lambda: connection.scalar(text("SELECT 1"))) if acquired else None


def _acquired(attempt: Callable[[], bool], wait: bool) -> bool:
    while not attempt():
        if not wait:
            return False
        INTERRUPTS.check()
        time.sleep(_POLL_SECONDS)
    return True
