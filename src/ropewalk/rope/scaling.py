"""RopeScaling: the value that every way of extending a context window comes down to."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ropewalk.rope.json_value import JsonValue


@dataclass(frozen=True)
class RopeScaling(JsonValue):
    """A rescaled rotary embedding, independent of any model's weights.

    Dimension pair i is rotated by ``n * inv_freq_i / factors[i]`` at positions n >= n_hat and by ``n * inv_freq_i``
    before. cos and sin are multiplied by ``attention_factor``, so attention scores change by its square. Queries are
    multiplied by ``query_scales``.

    Raises:
        ValueError: a factor or a query scale is not a positive number, a length or n_hat is out of range, or the rows
            of query scales differ in length.
    """

    factors: tuple[float, ...]
    """Rescale factors lambda, one per dimension pair, highest frequency first (rotary_dim / 2 of them)."""
    original_length: int
    """Window of the model before any extension, in tokens."""
    target_length: int
    """Window that the factors are made for, in tokens."""
    n_hat: int = 0
    """Number of first positions that keep the original rotation."""
    attention_factor: float = 1.0
    method: str = field(default="longrope", compare=False)
    """Name of the method that made it, for tables."""
    query_scales: tuple[tuple[float, ...], ...] | None = None
    """What the queries are multiplied by, one row per layer that attends: a scale per query head, or one per head and
    dimension pair, head by head, which leaves the dimensions that do not rotate as they are. None for no scales."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))
        object.__setattr__(self, "attention_factor", float(self.attention_factor))
        for name in ("original_length", "target_length", "n_hat"):
            if int(getattr(self, name)) != getattr(self, name):
                raise ValueError(f"{name} must be a whole number, found {getattr(self, name)}")
            object.__setattr__(self, name, int(getattr(self, name)))
        if not self.factors:
            raise ValueError("a RopeScaling needs at least one factor")
        if not all(math.isfinite(factor) and factor > 0 for factor in self.factors):
            raise ValueError(f"rescale factors must be positive numbers, found {self.factors}")
        if not (math.isfinite(self.attention_factor) and self.attention_factor > 0):
            raise ValueError(f"attention_factor must be a positive number, found {self.attention_factor}")
        if self.original_length < 1 or self.target_length < self.original_length:
            raise ValueError(
                "target_length must not be below original_length, "
                f"found {self.target_length} and {self.original_length}"
            )
        if self.n_hat < 0:
            raise ValueError(f"n_hat must not be negative, found {self.n_hat}")
        if self.query_scales is not None:
            rows = tuple(tuple(float(scale) for scale in row) for row in self.query_scales)
            object.__setattr__(self, "query_scales", rows)
            lengths = sorted({len(row) for row in rows})
            if len(lengths) != 1 or not lengths[0]:
                raise ValueError(f"query_scales must be rows of equal length, not empty, found the lengths {lengths}")
            if wrong := [scale for row in rows for scale in row if not (math.isfinite(scale) and scale > 0)]:
                raise ValueError(f"query_scales must be positive numbers, found {wrong[0]}")

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.factors)

    @property
    def ratio(self) -> float:
        """s = target length / original length."""
        return self.target_length / self.original_length

    @property
    def is_plain(self) -> bool:
        """Whether it leaves the rotary embedding and the queries as they are."""
        scales = (scale for row in self.query_scales or () for scale in row)
        return self.attention_factor == 1 and all(number == 1 for number in (*self.factors, *scales))

    @property
    def effect(self) -> tuple[Any, ...]:
        """All that the outputs of a model under it depend on, in hashable form: no names and no lengths."""
        scales = () if self.query_scales is None else (self.query_scales,)
        return self.factors, self.n_hat, self.attention_factor, *scales

    def then(self, second: "RopeScaling") -> "RopeScaling":
        """Apply ``second`` on top of this scaling: factors and query scales multiply, all else is the second's.

        Raises:
            ValueError: the two are for different rotary dimensions, or their query scales differ in shape.
        """
        second.check_rotary_dim(self.rotary_dim)
        factors = tuple(ours * theirs for ours, theirs in zip(self.factors, second.factors, strict=True))
        scales = _multiplied(self.query_scales, second.query_scales)
        return replace(second, factors=factors, original_length=self.original_length, query_scales=scales)

    def relative_to(self, first: "RopeScaling") -> "RopeScaling":
        """The scaling that gives this one where it is applied on top of ``first`` (`then`).

        Where ``first`` has query scales, they are taken to be those of both.
        """
        factors = tuple(whole / ours for whole, ours in zip(self.factors, first.factors, strict=True))
        scales = None if first.query_scales else self.query_scales
        return replace(self, factors=factors, original_length=first.target_length, query_scales=scales)

    def check_rotary_dim(self, rotary_dim: int) -> None:
        """Raise ValueError unless the factors are for ``rotary_dim`` rotary dimensions."""
        if self.rotary_dim != rotary_dim:
            raise ValueError(
                f"found {len(self.factors)} rescale factors, which is for {self.rotary_dim} rotary dimensions, "
                f"but the model has {rotary_dim}; use factors made for this model"
            )

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "factors": list(self.factors)}
        scales = values.pop("query_scales")
        return values if scales is None else {**values, "query_scales": [list(row) for row in scales]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        return cls(**{**known, "factors": tuple(values["factors"])})

    @classmethod
    def from_file(
        cls, path: str | Path, *, rotary_dim: int, original_length: int, target_length: int, key: str
    ) -> Self:
        """Read factors for a given model from a file: `to_json`'s JSON, or a CSV table for these lengths (`from_csv`).

        Args:
            key: configuration key that the path is the value of, for messages.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no factors, or not as many as the model has dimension pairs.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{key}: {path} is not there; give a .json or .csv file of rescale factors")
        try:
            if path.suffix == ".csv":
                scaling = cls.from_csv(path, original_length=original_length, target_length=target_length)
            else:
                scaling = cls.from_json(path.read_text(encoding="utf-8"))
            scaling.check_rotary_dim(rotary_dim)
        except ValueError as error:
            raise ValueError(f"{key}: {path}: {error}") from None
        return scaling

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        original_length: int,
        target_length: int,
        n_hat: int = 0,
        attention_factor: float | None = None,
    ) -> Self:
        """Read a published table of factors: one row, or one row per layer, which are averaged with a warning.

        ``attention_factor`` defaults to LongRoPE's sqrt(1 + ln s / ln original_length).

        Raises:
            ValueError: the file is not a table of numbers with rows of equal length.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            rows = [[float(cell) for cell in line.split(",")] for line in lines if line.strip()]
        except ValueError:
            raise ValueError(f"{path} is not a table of comma-separated numbers") from None
        if len({len(row) for row in rows}) != 1:
            lengths = sorted({len(row) for row in rows})
            raise ValueError(f"{path} must hold rows of equal length, found lengths {lengths}")
        factors = rows[0]
        if any(row != factors for row in rows):
            warnings.warn(f"{path} has different factors per layer; using their mean over {len(rows)}", stacklevel=2)
            factors = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        if attention_factor is None:
            attention_factor = su_attention_factor(target_length / original_length, original_length)
        try:
            return cls(tuple(factors), original_length, target_length, n_hat, attention_factor)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _multiplied(
    first: tuple[tuple[float, ...], ...] | None, second: tuple[tuple[float, ...], ...] | None
) -> tuple[tuple[float, ...], ...] | None:
    """The product of two tables of query scales, or the only one that is given."""
    if first is None or second is None:
        return first or second
    shapes = [(len(scales), len(scales[0])) for scales in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"query_scales of the shapes {shapes[0]} and {shapes[1]} do not multiply; give equal shapes")
    return tuple(tuple(a * b for a, b in zip(*rows, strict=True)) for rows in zip(first, second, strict=True))


def su_attention_factor(ratio: float, original_length: int) -> float:
    """LongRoPE's sqrt(1 + ln s / ln L0); 1 for s <= 1 (HF ``_compute_longrope_parameters``)."""
    return math.sqrt(1 + math.log(ratio) / math.log(original_length)) if ratio > 1 else 1.0


def yarn_attention_factor(ratio: float, weight: float = 1.0) -> float:
    """YaRN's 0.1 ln(s) + 1, with the logarithm weighted; 1 for s <= 1 (HF ``_compute_yarn_parameters``)."""
    return 0.1 * weight * math.log(ratio) + 1 if ratio > 1 else 1.0
