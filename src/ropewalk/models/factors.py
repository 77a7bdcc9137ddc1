"""The files below results/factors: rescale factors together with the search that they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ropewalk.files import write_text
from ropewalk.rope import LengthSwitch, RopeScaling
from ropewalk.rope.json_value import JsonValue

Provenance = Mapping[str, Any]
"""Method, model, data, budget and commit of a search (`ropewalk.search.history.provenance`)."""


@dataclass(frozen=True)
class SearchedFactors(JsonValue):
    """The result of one search: first.json, first_gradient.json and second.json.

    The scaling is not nested in the JSON object, so `RopeScaling.from_json` reads such a file too.
    """

    scaling: RopeScaling
    provenance: Provenance | None = None
    """None for factors that were not searched for."""
    shorter: tuple[RopeScaling, ...] = ()
    """Results for shorter lengths, which the search for this length started from, in rising order."""

    @property
    def by_length(self) -> dict[int, RopeScaling]:
        """Every scaling by its target length in tokens, the longest last."""
        return {scaling.target_length: scaling for scaling in (*self.shorter, self.scaling)}

    def to_dict(self) -> dict[str, Any]:
        shorter = {"shorter": [scaling.to_dict() for scaling in self.shorter]} if self.shorter else {}
        return {**self.scaling.to_dict(), **shorter, "provenance": self.provenance}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        scaling = RopeScaling.from_dict(values)
        shorter = tuple(RopeScaling.from_dict(entry) for entry in values.get("shorter", ()))
        return cls(scaling, values.get("provenance"), shorter)

    def write(self, path: Path) -> None:
        write_text(path, self.to_json())


@dataclass(frozen=True)
class FactorsEntry:
    """One scaling of `FactorsByLength`."""

    up_to_length: int
    """Longest input in tokens that the scaling is for."""
    scaling: RopeScaling
    provenance: Provenance | None = None
    """None for a scaling that was not searched for."""


@dataclass(frozen=True)
class FactorsByLength(JsonValue):
    """Scalings by input length: second_by_length.json and recovered.json; `LengthSwitch.from_json` reads them too."""

    entries: tuple[FactorsEntry, ...]

    @property
    def switch(self) -> LengthSwitch:
        """The scalings alone; raises ValueError where there are none or the lengths do not rise."""
        return LengthSwitch(tuple((entry.up_to_length, entry.scaling) for entry in self.entries))

    def to_dict(self) -> dict[str, Any]:
        entries = self.switch.to_dict()["switch"] if self.entries else []
        origins = [{"provenance": entry.provenance} for entry in self.entries]
        return {"switch": [entry | origin for entry, origin in zip(entries, origins, strict=True)]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if not values["switch"]:  # as a second search that has nothing to do leaves it
            return cls(())
        switch, origins = LengthSwitch.from_dict(values), [entry.get("provenance") for entry in values["switch"]]
        return cls(tuple(FactorsEntry(*entry, origin) for entry, origin in zip(switch, origins, strict=True)))
