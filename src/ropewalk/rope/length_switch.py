"""LengthSwitch: the scalings that a model chooses among by the length of its input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ropewalk.rope.json_value import JsonValue
from ropewalk.rope.scaling import RopeScaling


@dataclass(frozen=True)
class LengthSwitch(JsonValue):
    """Scalings of which a model applies the first one whose ``up_to_length`` its input does not exceed.

    Raises:
        ValueError: there is no entry, or the lengths do not rise.
    """

    entries: tuple[tuple[int, RopeScaling], ...]
    """(up_to_length, scaling), lengths in tokens, in rising order."""

    def __post_init__(self) -> None:
        if not self.entries or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"the lengths of a switch must rise, found {list(self.lengths)}")

    def __iter__(self) -> Iterator[tuple[int, RopeScaling]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths in tokens up to which the scalings apply."""
        return tuple(up_to for up_to, _ in self.entries)

    @property
    def scalings(self) -> tuple[RopeScaling, ...]:
        return tuple(scaling for _, scaling in self.entries)

    @property
    def longest(self) -> RopeScaling:
        """The scaling for the longest inputs."""
        return self.entries[-1][1]

    def entry_for(self, length: int) -> tuple[int, RopeScaling]:
        """(up_to_length, scaling) for inputs of ``length`` tokens; the last entry beyond all lengths."""
        return next((entry for entry in self.entries if length <= entry[0]), self.entries[-1])

    def for_length(self, length: int) -> RopeScaling:
        """The scaling for inputs of ``length`` tokens; the last one beyond all lengths."""
        return self.entry_for(length)[1]

    def check_rotary_dim(self, rotary_dim: int) -> None:
        """Raise ValueError unless every scaling is for ``rotary_dim`` rotary dimensions."""
        for scaling in self.scalings:
            scaling.check_rotary_dim(rotary_dim)

    def to_dict(self) -> dict[str, Any]:
        entries = [{"up_to_length": up_to, "scaling": scaling.to_dict()} for up_to, scaling in self.entries]
        return {"switch": entries}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(tuple((int(e["up_to_length"]), RopeScaling.from_dict(e["scaling"])) for e in values["switch"]))
