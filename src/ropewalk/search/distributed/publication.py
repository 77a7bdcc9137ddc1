"""The results of a search stage: written on every machine that needs them, tracked once for all that share it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from ropewalk.files import text_hash, write_json, write_table, write_text
from ropewalk.search.distributed.locks import Keep, in_turn
from ropewalk.search.distributed.storage import storage_of
from ropewalk.search.history import Results, search_metrics, table

if TYPE_CHECKING:
    from ropewalk.search.targets import TargetSearch


def publish(
    search: "TargetSearch",
    results: Results,
    factors: Mapping[str, str],
    *,
    stage: str,
    output: Path,
    log_search: Callable[[str, list[dict[str, Any]], Path], None],
    log_file: Callable[[Path], None],
) -> None:
    """Write and track ``results``, once for all machines that share ``search``.

    If another machine has done so, only the files are written here, unless they exist with the same content.

    Args:
        factors: name below ``output``/factors -> text of the factors files; the first is tracked.
        log_search: (stage, history of all lengths, path of its table).
    """
    files = {output / "factors" / name: text for name, text in factors.items()}
    plot = output / "plots" / f"{stage}.csv"

    def write_and_track(kept: dict[str, Any], keep: Keep) -> None:
        is_here = plot.exists() and all(path.exists() and path.read_text() == text for path, text in files.items())
        if not (kept and is_here):
            for path, text in files.items():
                write_text(path, text)
            write_table(plot, table(results))
            write_json(output / "metrics" / f"{stage}.json", search_metrics(results))
        if not kept:
            log_search(stage, table(results), plot)
            log_file(next(iter(files)))
            keep("done", True)

    config = search.config
    if config.storage is None:
        write_and_track({}, lambda key, value: None)
        return
    # A study that was continued has other results, which are published again.
    content = json.dumps([(result.best.to_json(), result.rows) for result in results.values()])
    with storage_of(config, search.state_folder) as storage:
        study = optuna.load_study(study_name=search.study_name(max(results)), storage=storage)
        in_turn(study, storage, f"result {text_hash(content)[:16]}", write_and_track)
