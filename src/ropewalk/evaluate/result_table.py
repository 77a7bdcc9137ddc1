"""The typed tables of an evaluation, and the queries that checks, summary, report and card make of them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd

from ropewalk.evaluate.uncertainty import cluster_interval
from ropewalk.files import read_table

Row = dict[str, Any]

_TEXTS = ("model", "method", "variant", "document_set", "protocol", "family", "form", "against", "against_variant")
_COUNTS = ("length", "documents", "tokens", "trials", "correct", "likely", "key_tokens")
_NUMBERS = (
    "perplexity", "low", "high", "accuracy", "likelihood_accuracy", "chance", "perplexity_ratio", "p_value",
    "key_perplexity", "gain_nats",
)  # fmt: skip
_COUNTED = {"accuracy": "correct", "likelihood_accuracy": "likely"}
"""The columns of the passkey's table that count right trials, by their score."""
_TYPES = dict.fromkeys(_TEXTS, "str") | dict.fromkeys(_COUNTS, "int64") | dict.fromkeys(_NUMBERS, "float64")


class ResultTable:
    """Rows of ``plots/perplexity.csv``, ``passkey.csv``, ``needles.csv``, ``paired.csv`` or ``far_context.csv``, as a
    typed ``frame``.

    What was not measured is NaN in a column of numbers.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """A table of rows as they are written to the CSV files and read from them."""
        frame = pd.DataFrame(list(rows))
        if frame.empty:
            frame = pd.DataFrame(columns=list(_TYPES))
        for name in frame.columns.intersection(_NUMBERS):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
        return cls(frame.astype({name: kind for name, kind in _TYPES.items() if name in frame}))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The table in a CSV file that `ropewalk.files.write_table` wrote."""
        return cls.from_rows(read_table(path))

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self) -> list[Row]:
        """The rows as dictionaries by column."""
        return list(self.frame.to_dict("records"))

    def where(self, **values: Any) -> Self:
        """The rows whose columns have these values; a tuple allows each of its values."""
        frame = self.frame
        for name, value in values.items():
            frame = frame[frame[name].isin(value if isinstance(value, tuple) else (value,))]
        return type(self)(frame)

    def values(self, column: str) -> list[Any]:
        """The distinct values of a column, in order of their first row."""
        return list(self.frame[column].unique().tolist())

    def lengths(self) -> list[int]:
        """Input lengths in tokens, rising."""
        return sorted(self.values("length"))

    def by_length(self) -> dict[int, Self]:
        """The rows of each length, which rises."""
        return {length: self.where(length=length) for length in self.lengths()}

    def groups(self, *columns: str) -> Iterator[tuple[tuple[Any, ...], Self]]:
        """(values of the columns, the rows that have them), in order of their first row."""
        for key, frame in self.frame.groupby(list(columns), sort=False):
            yield key, type(self)(frame)

    def best_by_length(self, **values: Any) -> dict[int, Row]:
        """By length, the row of the lowest perplexity among those `where` the columns have these values."""
        frame = self.where(**values).frame
        if frame.empty:
            return {}
        best = frame.loc[frame.groupby("length")["perplexity"].idxmin()]
        return {row["length"]: row for row in best.to_dict("records")}

    def best_case(self, *, length: int, **values: Any) -> Row | None:
        """The row of the lowest perplexity at a length among those `where` the columns have these values, or None."""
        return self.best_by_length(length=length, **values).get(length)

    def best_perplexity(self, *, length: int, **values: Any) -> float | None:
        """The perplexity of `best_case`."""
        row = self.best_case(length=length, **values)
        return None if row is None else float(row["perplexity"])

    def trials(self) -> int:
        return int(self.frame["trials"].sum())

    def accuracy(self, score: str = "accuracy", *, scale: int = 1) -> float | None:
        """Mean score of all trials, at most ``scale``; None where nothing was tried.

        A table that counts right trials (the passkey's) has their share; others have a score per row.
        """
        if not (trials := self.trials()):
            return None
        if "correct" in self.frame:
            right = int(self.frame[_COUNTED[score]].sum())
        else:
            # Python's own sum, whose order does not depend on the number of rows.
            right = sum((self.frame[score] * self.frame["trials"]).tolist())
        return scale * right / trials

    def accuracies(self, score: str = "accuracy", *, scale: int = 1) -> dict[int, float]:
        """`accuracy` of all trials by the lengths at which something was tried."""
        by_length = {length: rows.accuracy(score, scale=scale) for length, rows in self.by_length().items()}
        return {length: accuracy for length, accuracy in by_length.items() if accuracy is not None}

    def interval(self, score: str = "accuracy", *, scale: int = 1) -> tuple[float, float] | None:
        """Interval of `accuracy` by clusters (`ropewalk.evaluate.uncertainty.cluster_interval`), forms apart.

        None where a form has too few clusters.
        """
        columns = [_COUNTED[score], "trials"]
        sums = self.frame.groupby(["form", "cluster"])[columns].sum()
        strata = [list(map(tuple, of_form.to_numpy().tolist())) for _, of_form in sums.groupby(level="form")]
        interval = cluster_interval(strata)
        return None if interval is None else (scale * interval[0], scale * interval[1])

    def paired_ratio(self, *, model: str, against: str, length: int) -> Row | None:
        """The row that compares ours with the method ``against`` on the same documents; None where there is none."""
        frame = self.where(model=model, against=against, length=length).frame
        return next(iter(frame[frame["perplexity_ratio"].notna()].to_dict("records")), None)
