"""The files of one run as the report reads them; missing ones are noted with the stage that makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.files import read_json, read_table
from ropewalk.ways import LEFT_OUT

SEARCHES = {"search_first": "First search", "search_second": "Second search", "recover": "Recovery"}
"""Titles of the search stages."""


def setting(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def searches(config: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the search stages that have work to do in the configuration's way of extending, by stage."""
    left_out = LEFT_OUT.get(setting(config, "extension.way"), ())
    titles = SEARCHES if "search_second" not in left_out else SEARCHES | {"search_first": "Search"}
    return {stage: title for stage, title in titles.items() if stage not in left_out}


def is_trained(config: Mapping[str, Any]) -> bool:
    """Whether the configuration's way of extending trains the model."""
    return "finetune_second" not in LEFT_OUT.get(setting(config, "extension.way"), ())


class Results:
    """The files below ``folder``; pictures are written to the folder ``plots``."""

    def __init__(self, folder: Path, plots: Path) -> None:
        self.folder, self.plots = folder, plots
        self.missing: list[str] = []

    def rows(self, name: str, stage: str) -> list[Row]:
        """Rows of a CSV file; none, with a note, where it is not there or empty."""
        rows = self.optional_rows(name)
        if not rows:
            self._note(name, stage, "has no rows" if (self.folder / name).is_file() else "is not there")
        return rows

    def optional_rows(self, name: str) -> list[Row]:
        """Rows of a CSV file that only some runs have."""
        path = self.folder / name
        return read_table(path) if path.is_file() else []

    def table(self, name: str) -> ResultTable:
        """The result table ``plots/<name>.csv``, empty where it is not there."""
        return ResultTable.from_rows(self.optional_rows(f"plots/{name}.csv"))

    def json(self, name: str, stage: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            self._note(name, stage, "is not there")
            return None
        return read_json(path)

    def query_scales(self) -> list[list[float]]:
        """The query scales of the first target's factors, by layer; none in most runs."""
        path = self.folder / "factors" / "first.json"
        return (read_json(path).get("query_scales") if path.is_file() else None) or []

    def metrics(self) -> dict[str, Any]:
        """What is in ``metrics/``, by stage; without that of the report, which is made from the others."""
        paths = sorted((self.folder / "metrics").glob("*.json"))
        return {path.stem: read_json(path) for path in paths if path.stem != "report"}

    def _note(self, name: str, stage: str, what: str) -> None:
        self.missing.append(f"{name} {what}; stage {stage} makes it.")

    def noted(self) -> tuple[str, ...]:
        """The notes since the last call."""
        notes, self.missing = tuple(self.missing), []
        return notes
