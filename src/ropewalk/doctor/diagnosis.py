"""The verdict on a runtime: its losses by position beside those of the stated scaling and of plain RoPE."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

_MIN_DISTANCE = 4.0
"""Distance in tolerances by which losses with the scaling and with plain RoPE must differ somewhere for a verdict."""
_SHARE = 0.1
"""Share of that distance by which losses may differ and still count as the same."""


class Verdict(Enum):
    """What a runtime does with a scaling; the value is the exit code of pipelines/doctor.py."""

    APPLIED = 0
    DROPPED = 1
    ELSE = 1.5
    """Something other than the scaling or plain RoPE."""
    UNTOLD = 2
    """Undecided, since the losses under the scaling and under plain RoPE are too similar on this text."""

    @property
    def exit_code(self) -> int:
        return int(self.value)


@dataclass(frozen=True)
class Losses:
    """Loss of every token but the first, in nats, in float32 (length - 1,)."""

    runtime: Tensor
    scaled: Tensor
    """Under the stated scaling, by Ropewalk with the same weights."""
    plain: Tensor
    """Under plain RoPE, likewise."""


@dataclass(frozen=True)
class Bin:
    """Means over a range of positions, in nats."""

    first: int
    """Position of the first token that is predicted; the text begins at 0."""
    last: int
    runtime: float
    scaled: float
    plain: float
    from_scaled: float
    """Mean distance of the runtime's losses from those under the scaling, token by token."""
    from_plain: float
    apart: float
    """Mean distance of the losses under the scaling from those under plain RoPE."""


@dataclass(frozen=True)
class Diagnosis:
    """What one runtime does with the scaling of a checkpoint."""

    runtime: str
    window: int
    """Window in tokens before the scaling."""
    losses: Losses
    tolerance: float
    """Mean distance of losses in nats that rounding and quantised arithmetic explain."""
    verdict: Verdict
    explanation: str = ""
    """What the runtime applies where that is neither the scaling nor plain RoPE, or how it departs from the scaling."""

    @property
    def bins(self) -> list[Bin]:
        return bins_of(self.losses, self.window)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        bins = self.bins
        worst = max(bins, key=lambda part: part.apart)
        length = len(self.losses.runtime) + 1
        if self.verdict is Verdict.APPLIED:
            difference = max(part.from_scaled for part in bins)
            agree = f"losses agree to {difference:.2g} nats up to {length:,} tokens"
            how = f", {self.explanation}" if self.explanation else ""
            return f"{self.runtime} applies the scaling{how}: {agree}"
        if self.verdict is Verdict.DROPPED:
            return (
                f"{self.runtime} drops it: from position {worst.first:,} on its loss equals that of plain RoPE "
                f"({worst.runtime:.2f} for {worst.scaled:.2f})"
            )
        if self.verdict is Verdict.ELSE:
            what = self.explanation or "neither the scaling nor plain RoPE"
            return (
                f"{self.runtime} applies {what}: its loss first differs at position {self.first_difference:,}, and is "
                f"{worst.runtime:.2f} from position {worst.first:,} on (scaled {worst.scaled:.2f}, plain "
                f"{worst.plain:.2f})"
            )
        longer = f"; give a text of more than {2 * self.window:,} tokens" if length <= 2 * self.window else ""
        return (
            f"it cannot be told whether {self.runtime} applies the scaling: on {length:,} tokens of this text, losses "
            f"with and without it are {worst.apart:.2g} nats apart at most{longer}"
        )

    @property
    def first_difference(self) -> int:
        """Position of the first token whose loss is not that under the scaling."""
        far = (self.losses.runtime - self.losses.scaled).abs() > 10 * self.tolerance
        return int(far.float().argmax()) + 1

    def rows(self) -> list[dict[str, Any]]:
        """A row per range of positions, for the table."""
        return [{"name": self.runtime, **asdict(part)} for part in self.bins]

    def metrics(self) -> dict[str, Any]:
        """The verdict, and the largest distances of any range of positions."""
        bins = self.bins
        return {
            "exit_code": self.verdict.exit_code,
            "from_scaled": max(part.from_scaled for part in bins),
            "from_plain": max(part.from_plain for part in bins),
        }

    def text(self) -> str:
        """The sentence and the table, 80 columns wide."""
        head = f"{'positions':>20} {self.runtime:>13} {'scaled':>8} {'plain':>8} {'to scaled':>10} {'to plain':>10}"
        lines = [
            f"{f'{part.first:,} to {part.last:,}':>20} {part.runtime:>13.4f} {part.scaled:>8.4f} {part.plain:>8.4f} "
            f"{part.from_scaled:>10.2g} {part.from_plain:>10.2g}"
            for part in self.bins
        ]
        return "\n".join([head, *lines, "", self.sentence])


def position_edges(window: int, length: int) -> Iterator[tuple[int, int]]:
    """First and last positions of the ranges: within the window, to twice the window, to four times, … to the end."""
    first, last = 1, window - 1
    while first < length:
        yield first, min(last, length - 1)
        first, last = last + 1, 2 * last + 1


def bins_of(losses: Losses, window: int) -> list[Bin]:
    """Means of ``losses`` by ranges of positions."""
    parts = []
    for first, last in position_edges(window, len(losses.runtime) + 1):
        runtime, scaled, plain = (values[first - 1 : last] for values in vars(losses).values())
        distances = ((runtime - scaled), (runtime - plain), (scaled - plain))
        means = (values.mean() for values in (runtime, scaled, plain, *(part.abs() for part in distances)))
        parts.append(Bin(first, last, *map(float, means)))
    return parts


def judged(losses: Losses, window: int, *, tolerance: float) -> Verdict:
    """The verdict by distances alone: the scaling or plain RoPE, if the losses are near enough to it everywhere."""
    bins = bins_of(losses, window)
    if not max(part.apart for part in bins) > _MIN_DISTANCE * tolerance:
        return Verdict.UNTOLD
    allowed = [max(tolerance, _SHARE * part.apart) for part in bins]
    for verdict, distances in (
        (Verdict.APPLIED, [part.from_scaled for part in bins]),
        (Verdict.DROPPED, [part.from_plain for part in bins]),
    ):
        if all(distance <= most for distance, most in zip(distances, allowed, strict=True)):
            return verdict
    return Verdict.ELSE


def is_same(losses: Tensor, other: Tensor, *, window: int, tolerance: float, apart: Sequence[float]) -> bool:
    """Whether ``losses`` are ``other`` in every range of positions, up to the tolerance or a share of ``apart``."""
    edges = position_edges(window, len(losses) + 1)
    distance = (losses - other).abs()
    return all(
        float(distance[first - 1 : last].mean()) <= max(tolerance, _SHARE * most)
        for (first, last), most in zip(edges, apart, strict=True)
    )


def finite(losses: Tensor) -> Tensor:
    """Losses with a large number in place of NaN, so that they compare as far from any other."""
    return torch.nan_to_num(losses, nan=1e4)
