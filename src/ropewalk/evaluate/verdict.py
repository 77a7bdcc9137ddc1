"""To how many tokens an extended model works: how far it reads, how far it retrieves, and by which thresholds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Self

from ropewalk.evaluate.needle_families import family_name
from ropewalk.evaluate.result_table import ResultTable

TABLES = ("perplexity", "passkey", "needles", "far_context")
"""Names of the tables that a verdict is on, in the order in which `Verdict.of` takes them."""
KEPT = 0.9
"""Share of the answers which the base model gives inside its window that the extended model is to give at a length."""
ASKED = 0.5
"""Accuracy of the base model inside its window below which a task says nothing about the extension."""


@dataclass(frozen=True)
class TaskAccuracy:
    """How well a recall task is answered at one length, beside the base model inside its window."""

    task: str
    """The passkey task, or a needle family."""
    accuracy: float
    inside: float

    @property
    def kept(self) -> float:
        """Share of what the base model answers inside its window, at most 1."""
        return min(1.0, self.accuracy / self.inside)


@dataclass(frozen=True)
class Verdict:
    """How far a model under our factors works. Lengths are in tokens, and are the window where no longer one qualifies.

    A length is read well where the perplexity is not above that of the base model inside its window, and where the
    second half of the tokens is predicted better with all the text before them than with the last window of it, beyond
    the interval where there is one. A length is retrieved from where the extended model gives at least `KEPT` of the
    answers that the base model gives inside its window, as the mean over the tasks of which the base model answers at
    least `ASKED` there. Both must hold at every shorter measured length beyond the window too.
    """

    window: int
    extended: str
    """Name of the extended model in the tables: finetuned, or base where no weight was changed."""
    reads_to: int | None
    """None where this was not measured."""
    retrieves_to: int | None
    """None where nothing was asked beyond the window, or no task says anything about the extension."""
    gains: dict[int, float]
    """By length, what the far text gains in the second half of the tokens, nats per token."""
    answers: dict[int, tuple[TaskAccuracy, ...]]
    """By length, the tasks that count."""
    left_out: dict[str, float]
    """Tasks that say nothing about the extension, and the base model's accuracy inside its window."""

    @property
    def works_to(self) -> int | None:
        """The longest length that is read well and retrieved from, by whichever of the two could be judged."""
        return min((length for length in (self.reads_to, self.retrieves_to) if length is not None), default=None)

    @property
    def lengths(self) -> dict[str, int]:
        """Those of works_to, reads_to and retrieves_to that are known, by name."""
        lengths = {"works_to": self.works_to, "reads_to": self.reads_to, "retrieves_to": self.retrieves_to}
        return {name: length for name, length in lengths.items() if length is not None}

    @classmethod
    def of(
        cls,
        perplexity: ResultTable,
        passkey: ResultTable,
        needles: ResultTable,
        far_context: ResultTable,
        *,
        window: int,
        extended: str,
    ) -> Self:
        """The verdict on the tables of an evaluation.

        Args:
            window: window of the base model.
            extended: as in the verdict.
        """
        inside = perplexity.best_perplexity(model="base", method="none", length=window)
        ours = perplexity.where(model=extended, method="ours")
        far = far_context.where(model=extended, method="ours")
        gains = {row["length"]: row for row in far.rows()}
        read = [length for length in ours.lengths() if length > window and length in gains]

        def is_read_well(length: int) -> bool:
            gain, low = gains[length]["gain_nats"], gains[length]["low"]
            # NaN, where there are too few documents for an interval, is not equal to itself.
            lower_bound = low if low == low else gain
            return (
                inside is not None and max(ours.where(length=length).values("perplexity")) <= inside and lower_bound > 0
            )

        tables = {"passkey": passkey, **{family: needles.where(family=family) for family in needles.values("family")}}
        left_out: dict[str, float] = {}
        answers: dict[int, list[TaskAccuracy]] = {}
        for name, table in tables.items():
            in_window = table.where(model="base", method="none", length=window).accuracy()
            if in_window is None:
                continue
            if in_window < ASKED:
                left_out[name] = in_window
                continue
            for length, accuracy in table.where(model=extended, method="ours").accuracies().items():
                if length > window:
                    answers.setdefault(length, []).append(TaskAccuracy(name, accuracy, in_window))

        def is_retrieved_from(length: int) -> bool:
            return sum(task.kept for task in answers[length]) >= KEPT * len(answers[length])

        return cls(
            window,
            extended,
            _last(read, is_read_well, window) if inside is not None else None,
            _last(sorted(answers), is_retrieved_from, window),
            {length: row["gain_nats"] for length, row in gains.items()},
            {length: tuple(tasks) for length, tasks in sorted(answers.items())},
            left_out,
        )

    def to_json(self) -> dict[str, Any]:
        """The lengths and the verdict in words, for the report, the card and the terminal."""
        return {"window": self.window, **self.lengths, "sentences": list(self._sentences())}

    def _sentences(self) -> Iterator[str]:
        works_to = self.works_to
        if works_to == self.window:
            yield f"Works to no measured length beyond its window of {self.window:,} tokens."
        elif works_to is not None:
            times = f"{round(works_to / self.window, 1):g} times its window of {self.window:,}"
            yield f"Works to {works_to:,} tokens, {times}."
        if self.reads_to is not None:
            yield self._reading(self.reads_to)
        yield from self._retrieval()

    def _reading(self, reads_to: int) -> str:
        better = (
            "the second half of the tokens is predicted better with all the text before them than with the last "
            f"{self.window:,} tokens of it"
        )
        if reads_to == self.window:
            return (
                "It reads no further than its window: at the next length measured the perplexity is above the base "
                f"model's inside its window, or it does not hold that {better}."
            )
        return (
            f"It reads to {reads_to:,} tokens: up to there the perplexity is not above the base model's inside its "
            f"window, and {better}, at {reads_to:,} tokens by {self.gains[reads_to]:.3f} nats a token."
        )

    def _retrieval(self) -> Iterator[str]:
        if self.retrieves_to is not None:
            beyond = self.retrieves_to > self.window
            where = f"to {self.retrieves_to:,} tokens" if beyond else "no further than its window"
            shown = [length for length in self.answers if length >= self.retrieves_to][:2]
            shares = "; ".join(f"at {length:,} tokens {_listed(self.answers[length])}" for length in shown)
            yield (
                f"It retrieves {where}: up to there it gives at least {100 * KEPT:.0f} % of the answers that the base "
                f"model gives inside its window, as the mean over the tasks ({shares})."
            )
        if self.left_out:
            tasks = ", ".join(f"{family_name(name)} {100 * accuracy:.0f} %" for name, accuracy in self.left_out.items())
            begin = "Not counted are" if self.answers else "How far it retrieves cannot be told from"
            yield f"{begin} tasks of which the base model answers less than half inside its window: {tasks}."


def _listed(tasks: Iterable[TaskAccuracy]) -> str:
    return ", ".join(
        f"{family_name(task.task)} {100 * task.accuracy:.0f} % (base model inside {100 * task.inside:.0f} %)"
        for task in tasks
    )


def _last(lengths: Sequence[int], holds: Callable[[int], bool], window: int) -> int | None:
    """The last of the rising ``lengths`` up to which all hold; ``window`` where the first does not, None for none."""
    return max(takewhile(holds, lengths), default=window) if lengths else None
