"""The files of one run as the report reads them; those that are not there are noted with the stage that makes them."""

from pathlib import Path
from typing import Any

from ropewalk.files import read_json, read_table
from ropewalk.report.style import Row


class Results:
    def __init__(self, folder: Path, plots: Path) -> None:
        """
        Args:
            folder: that of the results.
            plots: where pictures are written.
        """
        self.folder = folder
        self.plots = plots
        self.missing: list[str] = []

    def rows(self, name: str, stage: str) -> list[Row]:
        """Rows of a CSV file; none, with a note, where it is not there or empty."""
        path = self.folder / name
        if not path.is_file():
            self._note(name, stage)
            return []
        rows = read_table(path)
        if not rows:
            self._note(name, stage, "has no rows")
        return rows

    def optional_rows(self, name: str) -> list[Row]:
        """Rows of a CSV file that only some runs have."""
        path = self.folder / name
        return read_table(path) if path.is_file() else []

    def json(self, name: str, stage: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            self._note(name, stage)
            return None
        return read_json(path)

    def metrics(self) -> dict[str, Any]:
        """By stage, what is in ``metrics/``."""
        return {path.stem: read_json(path) for path in sorted((self.folder / "metrics").glob("*.json"))}

    def _note(self, name: str, stage: str, what: str = "is not there") -> None:
        self.missing.append(f"{name} {what}; stage {stage} makes it (dvc repro {stage}).")

    def noted(self) -> tuple[str, ...]:
        """Notes since the last call."""
        notes, self.missing = tuple(self.missing), []
        return notes
