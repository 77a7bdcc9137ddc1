"""LengthSwitch: the scalings that a model chooses among by the length of its input."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from ropewalk.rope.json_value import JsonValue
from ropewalk.rope.scaling import RopeScaling


def interpolated(shorter: tuple[int, RopeScaling], longer: tuple[int, RopeScaling], *, length: int) -> RopeScaling:
    """The scaling for ``length`` tokens between two others, or beyond them: geometric in every factor and in t.

    log lambda and log t are linear in the log of the length, as they are in the extension ratio under NTK-aware scaling
    and, but for its constant, in YaRN's attention factor. In this way, scalings that were searched for one length give
    scalings for every other length (docs/method.md, "Any length").

    Args:
        shorter: (length in tokens, scaling for it).
        longer: the same; its query scales and n_hat are kept.
    """
    (low, first), (high, last) = shorter, longer
    share = math.log(length / low) / math.log(high / low)

    def between(start: float, end: float) -> float:
        return start * math.pow(end / start, share)

    return replace(
        last,
        factors=tuple(map(between, first.factors, last.factors)),
        attention_factor=between(first.attention_factor, last.attention_factor),
        target_length=length,
    )


@dataclass(frozen=True)
class LengthSwitch(JsonValue):
    """Scalings of which a model applies the first one whose ``up_to_length`` its input does not exceed.

    Inputs longer than all entries get the scaling that `interpolated` gives beyond the last entry, at doublings of its
    length. The extrapolation starts from plain RoPE at the original window and not from the first entry, since a model
    that was trained to read long inputs uses some of their scaling for short ones too. Where the first entry is for
    more than the original window, as with a checkpoint that came with a scaling, it starts from that entry. A single
    entry is for all lengths.

    Raises:
        ValueError: there is no entry, the lengths do not rise, or the scalings have different query scales.
    """

    entries: tuple[tuple[int, RopeScaling], ...]
    """(up_to_length, scaling), lengths in tokens, in rising order."""

    def __post_init__(self) -> None:
        if not self.entries or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"the lengths of a switch must rise, found {list(self.lengths)}")
        other = [up_to for up_to, scaling in self.entries if scaling.query_scales != self.longest.query_scales]
        if other:
            # A model has one set of weights, which the scales are folded into.
            raise ValueError(
                f"the scalings of a switch must have the same query_scales, found others up to {other[0]} tokens than "
                f"up to {self.lengths[-1]}"
            )

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

    @property
    def without_query_scales(self) -> "LengthSwitch":
        """The same scalings for weights that the query scales were folded into."""
        return LengthSwitch(tuple((up_to, replace(scaling, query_scales=None)) for up_to, scaling in self.entries))

    @property
    def with_doublings(self) -> "LengthSwitch":
        """The switch with interpolated scalings for the doublings of each entry's length below that of the next one."""
        entries = list(self.entries[:1])
        for (shorter, shorter_scaling), (longer, longer_scaling) in pairwise(self.entries):
            length = 2 * shorter
            while length < longer:
                between = interpolated((shorter, shorter_scaling), (longer, longer_scaling), length=length)
                entries.append((length, between))
                length *= 2
            entries.append((longer, longer_scaling))
        return LengthSwitch(tuple(entries))

    def entry_for(self, length: int) -> tuple[int, RopeScaling]:
        """(up_to_length, scaling) for inputs of ``length`` tokens."""
        last = self.lengths[-1]
        if length <= last or len(self) == 1:
            return next((entry for entry in self.entries if length <= entry[0]), self.entries[-1])
        up_to = last * 2 ** math.ceil(math.log2(length / last))
        shortest = self.entries[0]
        if shortest[0] <= self.longest.original_length:
            plain = replace(self.longest, factors=(1.0,) * len(self.longest.factors), attention_factor=1.0)
            shortest = (shortest[0], plain)
        return up_to, interpolated(shortest, self.entries[-1], length=up_to)

    def for_length(self, length: int) -> RopeScaling:
        """The scaling for inputs of ``length`` tokens."""
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
