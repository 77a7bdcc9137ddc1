"""Where a study is kept: a file of its own beside the search's state, or a database that many machines share."""

import json
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

IDENTITY = "identity"
"""Study attribute: what the study is of; another study under the same name is refused."""


class _QuickConnection(sqlite3.Connection):
    """Leaves flushing to the system: a trial is some twenty commits, and a killed process loses none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous = OFF")


def open_storage(url: str | None, *, folder: Path, heartbeat_seconds: int) -> RDBStorage:
    """The database at ``url``, or ``folder``/study.db.

    Raises:
        ValueError: the address is not one, or its driver is not installed.
        ConnectionError: nothing answers there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url is None:
        url = f"sqlite:///{(folder / 'study.db').resolve()}"
        # Other workers of this machine write too.
        engine = {"connect_args": {"factory": _QuickConnection, "timeout": 60}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=heartbeat_seconds,
                grace_period=3 * heartbeat_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ValueError(
            f"search.storage must be a database address such as postgresql+psycopg://user@host/name with its driver "
            f"installed (extra `postgres`), found {_without_password(url)}: {error}"
        ) from None
    except DBAPIError as error:
        if url.startswith("sqlite"):
            raise
        raise ConnectionError(
            f"search.storage does not answer at {_without_password(url)}; start it and run the same command again "
            f"({str(error.orig).strip().splitlines()[0]})"
        ) from None


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.rpartition(':')[0] if before.count(':') > 1 else before}{at}{after}"


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
