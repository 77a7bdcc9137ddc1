"""What a search found, published once for all machines that share it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from optuna.trial import Trial

from ropewalk.files import text_hash
from ropewalk.search.history import Results
from ropewalk.search.schedule import work_off
from ropewalk.search.storage import open_storage, open_study
from ropewalk.search.targets import TargetSearch


def publish(
    search: TargetSearch,
    results: Results,
    write: Callable[[], None],
    track: Callable[[], None],
    files: Mapping[Path, str | None],
) -> None:
    """``write`` and ``track`` ``results``, once for all machines that share ``search``.

    Where another machine did, ``write`` is called only if one of ``files`` cannot be seen here, or holds another
    text than it should (None for any).
    """
    config = search.config
    if config.storage is None:
        write()
        track()
        return
    own = False

    def work(trial: Trial, position: int) -> float:
        nonlocal own
        write()
        track()
        own = True
        return 0.0

    storage = open_storage(
        config.storage,
        folder=search.state_folder,
        heartbeat_seconds=config.heartbeat_seconds,
        timeout=config.storage_timeout,
    )
    try:
        # Of these results: a study that went further has others.
        found = json.dumps([(result.best.to_json(), result.rows) for result in results.values()])
        name = f"{search.name}, result {text_hash(found)[:16]}"
        study = open_study(storage, name, sampler=None, pruner=None, identity={"model_hash": search.model_hash})
        work_off(study, work, length=1)
    finally:
        storage.engine.dispose()
    if not own and not all(path.exists() and text in (None, path.read_text()) for path, text in files.items()):
        write()
