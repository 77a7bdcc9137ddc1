"""Values that are kept in JSON files, and errors that say what is wrong with such a file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class JsonValue(ABC):
    """A frozen dataclass that is kept as a JSON object."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which `from_dict` reads."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s values; unknown keys are ignored.

        Raises:
            KeyError: a key is missing.
            TypeError, ValueError, OverflowError: a value has the wrong type, or is out of range.
        """

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`'s text; raises ValueError where the text is something else."""
        try:
            return cls.from_dict(json.loads(text))
        except (KeyError, TypeError, OverflowError, json.JSONDecodeError) as error:
            raise ValueError(f"not a {cls.__name__} in JSON: {error!r}") from None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of `to_json`'s text.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
