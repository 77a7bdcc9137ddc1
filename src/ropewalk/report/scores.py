"""Paired comparisons, needles, benchmarks before and after, retrieval against long context: tables and a figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ropewalk.evaluate.needle_families import family_name
from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.report.plots import is_number
from ropewalk.report.style import FAINT, HALF, PAPER, groups, legend, length_axis, panels_of, style
from ropewalk.report.tables import MODEL_NAMES, Cell, Table, length_table, protocols

WAYS = {
    # label, colour, line, marker
    "long": ("whole document, extended window", "#d55e00", "-", "o"),
    "retrieved": ("BM25 chunks, base model's window", "#0072b2", "--", "s"),
}


def _task(name: str) -> str:
    return family_name(name).capitalize()


def retrieval_table(rows: Sequence[Row]) -> Table:
    """Both scores, tokens read and seconds of an answer, by task, length and way of reading."""
    body = []
    for (task, length), ways in groups(rows, lambda row: (str(row["task"]), int(row["length"]))).items():
        best = max(float(row["accuracy"]) for row in ways)
        for row in sorted(ways, key=lambda row: list(WAYS).index(str(row["way"]))):
            share = float(row["accuracy"])
            likelier, likely = Cell("–"), row.get("likelihood_accuracy")
            if is_number(likely):
                likelier = Cell(f"{100 * likely:.0f} %", f"chance {100 * float(row['chance']):.0f} %")
            interval = f"{100 * row['low']:.0f}–{100 * row['high']:.0f} %" if is_number(row.get("low")) else ""
            body.append(
                (
                    Cell(f"{_task(task)}, {length:,}"),
                    Cell(WAYS[str(row["way"])][0]),
                    Cell(f"{100 * share:.0f} %", interval, best=share == best),
                    likelier,
                    Cell(f"{100 * float(row['held']):.0f} %"),
                    Cell(f"{float(row['tokens']):,.0f}"),
                    Cell(f"{1000 * float(row['seconds']):,.0f} ms"),
                    Cell(f"{int(row['trials']):,}"),
                )
            )  # fmt: skip
    header = (
        "task, tokens", "what is read", "accuracy", "likelier than wrong answers", "answer in what is read",
        "tokens read", "time an answer", "trials",
    )  # fmt: skip
    return Table("Retrieval or long context", header, tuple(body), tuple(protocols(rows)))


def retrieval(rows: Sequence[Row], *, width: float = HALF) -> Figure:
    """Both scores by length of the document, a panel per task, a line per score and way of reading it."""
    tasks = groups(rows, lambda row: str(row["task"]))
    figure, grid = panels_of(len(tasks), columns=min(len(tasks), 2), height=3.8, width=width)
    handles: dict[str, Line2D] = {}
    compared = False
    for (task, task_rows), axes in zip(tasks.items(), grid, strict=True):
        for way, read in groups(task_rows, lambda row: str(row["way"])).items():
            label, colour, line, marker = WAYS[way]
            ordered = sorted(read, key=lambda row: int(row["length"]))
            lengths = [int(row["length"]) for row in ordered]
            shares = [100 * float(row["accuracy"]) for row in ordered]
            if all(is_number(row.get("low")) and is_number(row.get("high")) for row in ordered):
                low, high = ([100 * float(row[key]) for row in ordered] for key in ("low", "high"))
                axes.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
            (handles[label],) = axes.plot(lengths, shares, line, color=colour, marker=marker, linewidth=2)
            if likely := [row for row in ordered if is_number(row.get("likelihood_accuracy"))]:
                lengths = [int(row["length"]) for row in likely]
                shares = [100 * float(row["likelihood_accuracy"]) for row in likely]
                axes.plot(lengths, shares, ":", color=colour, marker=marker, markerfacecolor=PAPER, linewidth=1.2)
                axes.axhline(100 * float(likely[0]["chance"]), color=FAINT, linewidth=0.8)
                compared = True
        length_axis(axes, sorted({int(row["length"]) for row in task_rows}))
        axes.set_xlabel("length of the document, tokens (log scale)")
        axes.set_ylim(-4, 104)
        axes.set_ylabel("right answers, %")
        axes.set_title(_task(task), fontsize=11, loc="left")
    if compared:
        handles["right answer likelier than wrong ones"] = Line2D(
            [], [], linestyle=":", color=FAINT, marker="o", markerfacecolor=PAPER, linewidth=1.2
        )
        handles["… by chance"] = Line2D([], [], color=FAINT, linewidth=0.8)
    legend(figure, handles, columns=2)
    return figure


def benchmark_table(rows: Sequence[Row]) -> Table:
    """Scores of general benchmarks, one column per model and factors: the original window, then the extended one."""
    columns = list(dict.fromkeys((str(row["model"]), str(row["factors"])) for row in rows))
    body = []
    for (task, metric), task_rows in groups(rows, lambda row: (str(row["task"]), str(row["metric"]))).items():
        scores = {(str(row["model"]), str(row["factors"])): _score(row) for row in task_rows}
        body.append((Cell(f"{task}, {metric}"), *(scores.get(column, Cell("–")) for column in columns)))
    header = ("task", *(f"{MODEL_NAMES.get(model, model)}, {factors}" for model, factors in columns))
    notes = dict.fromkeys(f"{row['task']}: {row['protocol']}." for row in rows)
    return Table("General benchmarks before and after", header, tuple(body), tuple(notes))


def _score(row: Row) -> Cell:
    if not is_number(row["score"]):
        return Cell("–")
    cut = f", {100 * row['cut']:.0f} % cut" if is_number(row.get("cut")) and row["cut"] else ""
    return Cell(f"{100 * float(row['score']):.1f} %", f"of {int(row['questions']):,}{cut}")


def needle_table(needles: ResultTable) -> Table:
    """Needle families by length, all depths together: answers decoded, and likelihood of the right answer beside it."""
    rows = []
    for (family, model, method), table in needles.groups("family", "model", "method"):
        label = f"{family_name(family)}: {MODEL_NAMES.get(model, model)}, {style(method)[0]}"
        cells = {length: _needle_cell(of_length) for length, of_length in table.by_length().items()}
        rows.append((label, cells))
    return length_table("Needles", "accuracy at length", needles.lengths(), rows, protocols(needles.rows()))


def _needle_cell(table: ResultTable) -> Cell:
    scores = [table.accuracy(score, scale=100) for score in ("accuracy", "likelihood_accuracy", "chance")]
    accuracy, likely, chance = (f"{score:.0f} %" for score in scores)
    return Cell(accuracy, f"likelier than others {likely}, chance {chance}")


def paired_table(comparisons: ResultTable) -> Table:
    """Ours over each other method's best case on the same documents: the ratio of perplexities and its uncertainty."""
    rows = []
    for model, against in (names for names, _ in comparisons.groups("model", "against")):
        by_length = {n: comparisons.paired_ratio(model=model, against=against, length=n) for n in comparisons.lengths()}
        cells = {length: _ratio(row) for length, row in by_length.items() if row is not None}
        rows.append((f"{MODEL_NAMES.get(model, model)}, {style(against)[0]}", cells))
    note = "Below 1, ours is the lower one. In small print the 95 % interval, the p-value and the number of documents."
    caption = "Perplexity of ours over that of others, same documents"
    return length_table(caption, "ours over", comparisons.lengths(), rows, [note])


def _ratio(row: Row) -> Cell:
    known = is_number(row["low"]) and is_number(row["high"])
    interval = f"{row['low']:.3f}–{row['high']:.3f}, " if known else ""
    p_value = f"p {row['p_value']:.2g}, " if is_number(row["p_value"]) else ""
    return Cell(f"{row['perplexity_ratio']:.3f}", f"{interval}{p_value}{row['documents']}")
