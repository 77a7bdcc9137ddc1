"""Figures of a run from the rows of its CSV files, readable at 900 pixels and without distinguishing colours.

pyplot is not used, since its state is global.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.report.style import (
    BAND,
    FAINT,
    INK,
    MODELS,
    OURS,
    PAPER,
    THIRD,
    WHOLE,
    groups,
    in_order,
    legend,
    length_axis,
    log_y,
    panels_of,
    style,
    token_count,
)


def perplexity(table: ResultTable, *, original_length: int, width: float = WHOLE) -> Figure:
    """Perplexity against length, one line per method in its best case, one panel per model; the control beside it.

    Figures on different document sets are different lines of one colour, filled and open, since they do not compare.
    Rows with ``low`` and ``high`` have a band between them.
    """
    panels = [model for model in MODELS if len(table.where(model=model))]
    figure, grid = panels_of(max(len(panels), 1), columns=2 if len(panels) > 1 else 1, height=4.4, width=width)
    handles: dict[str, Any] = {}
    for model, axes in zip(panels, grid, strict=False):
        model_rows = table.where(model=model)
        lines = {name: model_rows.where(method=name) for name in model_rows.values("method") if name != "gradient"}
        if model == "finetuned" and len(control := table.where(model="control")):
            lines["control"] = control
        for name in in_order(lines):
            for documents, filled in (("all", True), ("long", False)):
                if best := lines[name].best_by_length(document_set=documents):
                    handles |= _perplexity_line(axes, name, best, filled=filled)
        _perplexity_axes(axes, [row for line in lines.values() for row in line.rows()], original_length)
        axes.set_title(MODELS[model], fontsize=11, loc="left")
    if len(table.where(document_set="long")):
        for label, fill in (("all test documents", INK), ("the longest ones only", PAPER)):
            handles[label] = Line2D([], [], color=INK, marker="o", markerfacecolor=fill, linestyle="none")
    legend(figure, handles)
    return figure


def _perplexity_line(axes: Axes, method: str, best: Mapping[int, Row], *, filled: bool) -> dict[str, Any]:
    label, colour, line, marker = style(method)
    ours = method == "ours"
    banded = {length: row for length, row in best.items() if is_number(row.get("low")) and is_number(row.get("high"))}
    if banded:
        low, high = ([float(row[key]) for row in banded.values()] for key in ("low", "high"))
        axes.fill_between(list(banded), low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
    (handle,) = axes.plot(
        list(best), [float(row["perplexity"]) for row in best.values()], line, color=colour, marker=marker,
        markersize=6, markerfacecolor=colour if filled else PAPER, linewidth=2.6 if ours else 1.5,
        zorder=4 if ours else 3,
    )  # fmt: skip
    return {label: handle} if filled else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a cell of a table holds a finite number; one that was not measured is empty."""
    return isinstance(value, int | float) and math.isfinite(value)


def _perplexity_axes(axes: Axes, rows: Sequence[Row], original_length: int) -> None:
    values = [float(row["perplexity"]) for row in rows if is_number(row["perplexity"])] or [1.0]
    lengths = sorted({int(row["length"]) for row in rows})
    if max(values) / min(values) > 3:
        log_y(axes, values)
    length_axis(axes, lengths)
    axes.axvspan(lengths[0] / 1.15, original_length, color=BAND, zorder=0, linewidth=0)
    axes.axvline(original_length, color=FAINT, linewidth=1, zorder=1)
    _annotate(axes, "training window", (original_length, 1), va="top")
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.15)
    axes.set_ylabel(f"perplexity per token{' (log scale)' if axes.get_yscale() == 'log' else ''}")


def _annotate(axes: Axes, text: str, place: tuple[float, float], *, va: str) -> None:
    """Write small text beside ``place``: x in data coordinates, y as a fraction of the axes."""
    axes.annotate(
        text, place, xycoords=("data", "axes fraction"), xytext=(4, -4 if va == "top" else 4),
        textcoords="offset points", fontsize=8.5, color="#5c5c5c", va=va,
    )  # fmt: skip


def factors(
    rows: Sequence[Row], *, frequencies: Sequence[float] = (), critical: int | None = None, width: float = WHOLE
) -> Figure:
    """Rescale factors lambda, published methods beside ours (names that begin with "ours").

    Args:
        frequencies: the frequency of each pair under plain RoPE, in radians per token; with them the factors stand
            against frequency, and the pairs' numbers above.
        critical: the first pair that does not turn once in the training window, marked.
    """
    figure, (axes,) = panels_of(1, columns=1, height=4.4, width=width)
    lines = groups(rows, lambda row: str(row["factors_of"]))
    ours = [name for name in lines if name.startswith("ours")]
    handles: dict[str, Any] = {}
    for name in [*(name for name in in_order(lines) if name not in ours), *ours]:
        label, colour, line, marker = style(name)
        if name in ours:
            number = ours.index(name)
            shade = round(number * (len(OURS) - 1) / (len(ours) - 1)) if len(ours) > 1 else 2
            colour, line, marker = OURS[shade], "-", "osD^vP"[number % 6]
        ordered = sorted(lines[name], key=lambda row: int(row["pair"]))
        pairs = [int(row["pair"]) for row in ordered]
        (handles[label],) = axes.plot(
            [frequencies[pair] for pair in pairs] if frequencies else pairs,
            [float(row["lambda"]) for row in ordered], line, color=colour, marker=marker, markersize=4,
            linewidth=2.4 if name in ours else 1.4, zorder=4 if name in ours else 3,
        )  # fmt: skip
    log_y(axes, [float(row["lambda"]) for row in rows])
    axes.set_ylabel("rescale factor λ (log scale)")
    if frequencies:
        _frequency_axis(axes, frequencies)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("dimension pair, from the highest frequency to the lowest")
    if critical is not None and critical < len(frequencies or range(critical + 1)):
        place = frequencies[critical] if frequencies else critical
        axes.axvline(place, color=FAINT, linewidth=1.2, zorder=1)
        _annotate(axes, f"critical dimension {2 * critical}", (place, 0), va="bottom")
    legend(figure, handles)
    return figure


def searched_factors(rows: Sequence[Row]) -> Figure:
    """The best factors for each length among ``rows`` of a search."""
    whole = [row for row in rows if row["phase"] != "gradient" and is_number(row["loss"])]
    shown = []
    for length, length_rows in groups(whole, lambda row: row["length"]).items():
        best = min(length_rows, key=lambda row: float(row["loss"]))
        values = [value for name, value in best.items() if name.startswith("lambda_")]
        name = f"ours, {length:,} tokens"
        shown += [{"factors_of": name, "pair": pair, "lambda": value} for pair, value in enumerate(values)]
    return factors(shown)


def _frequency_axis(axes: Axes, frequencies: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(max(frequencies) * 1.3, min(frequencies) / 1.3)
    axes.minorticks_off()
    axes.set_xlabel("frequency, radians per token (log scale, high to low)")
    above = axes.secondary_xaxis("top")
    pairs = range(0, len(frequencies), max(1, len(frequencies) // 8))
    above.set_xticks([frequencies[pair] for pair in pairs], [str(pair) for pair in pairs])
    above.minorticks_off()
    above.spines["top"].set_visible(False)
    above.tick_params(labelsize=8.5, colors="#5c5c5c")
    above.set_xlabel("dimension pair", fontsize=8.5, color="#5c5c5c")


def search(runs: Mapping[str, Sequence[Row]], *, width: float = WHOLE) -> Figure:
    """exp(loss) on search documents over tokens paid: a panel per length of each search (title -> rows).

    It is a perplexity only where all tokens count alike in the fitness. Every gradient step reads other rows, so the
    losses of steps do not compare, and no line joins them.
    """
    panels = [
        (f"{title}, {length:,} tokens", length_rows)
        for title, rows in runs.items()
        for length, length_rows in groups(rows, lambda row: int(row["length"])).items()
    ]
    # The legend of a narrow figure takes several lines.
    height = 3.6 if width > THIRD else 4.2
    figure, grid = panels_of(len(panels), columns=min(len(panels), 3), height=height, width=width)
    handles: dict[str, Any] = {}
    for place, ((title, rows), axes) in enumerate(zip(panels, grid, strict=True)):
        handles |= _search_panel(axes, rows)
        axes.set_title(title, fontsize=10.5, loc="left")
        axes.set_xlabel("tokens paid in forward passes")
        if place % 3 == 0:
            axes.set_ylabel("exp(search loss), log scale")
    legend(figure, handles)
    return figure


_PHASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # label, colour, marker, and how the dots are drawn
    "published": ("point to start from", "#0072b2", "D", {"s": 26, "zorder": 4}),
    "gradient": ("gradient step, on rows of its own", "#009e73", "s", {"s": 12, "alpha": 0.6, "zorder": 2}),
    "learned": ("where the gradient ends", "#009e73", "P", {"s": 26, "zorder": 4}),
    "evolution": ("evolution, best so far", "#d55e00", "o", {"s": 9, "alpha": 0.3, "linewidths": 0, "zorder": 2}),
}


def _search_panel(axes: Axes, rows: Sequence[Row]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    shown: list[float] = []
    phases = groups(rows, lambda row: row["phase"])
    for phase, (label, colour, marker, dots) in _PHASES.items():
        phase_rows = sorted(phases.get(phase, []), key=lambda row: float(row["tokens"]))
        # A trial that was stopped early has no loss of its own.
        whole = [row for row in phase_rows if row["loss"] not in (None, "")]
        if not whole:
            continue
        paid, scores = [float(row["tokens"]) for row in whole], [_exp(row["loss"]) for row in whole]
        drawn = axes.scatter(paid, scores, marker=marker, color=colour, **dots)
        if phase != "evolution":
            handles[label] = drawn
        if phase in ("published", "learned"):
            shown.append(min(scores))
        elif phase == "gradient" and "evolution" not in phases:
            # Losses of steps on a row or two differ mainly by their text, so the axis leaves out the outliers.
            shown += [float(np.quantile(scores, share)) for share in (0.05, 0.95)]
        elif phase == "evolution":
            with_best = [row for row in phase_rows if row["best"] not in (None, "")]
            tokens, line = [float(row["tokens"]) for row in with_best], [_exp(row["best"]) for row in with_best]
            (handles[label],) = axes.plot(tokens, line, color=colour, linewidth=2.2, drawstyle="steps-post", zorder=3)
            ends = {row["generation"]: (paid, best) for row, paid, best in zip(with_best, tokens, line, strict=True)}
            last_tokens, last_best = zip(*ends.values(), strict=True)
            axes.scatter(last_tokens, last_best, s=22, marker="|", color=INK, zorder=5)
            shown += [*line, float(np.quantile(scores, 0.75))]
    # The axis leaves out the worst trials, which would flatten everything else.
    log_y(axes, [min(shown) / 1.03, max(shown) * 1.06])
    axes.set_ylim(min(shown) / 1.03, max(shown) * 1.06)
    axes.xaxis.set_major_formatter(FuncFormatter(token_count))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    return handles


def _exp(nats: Any) -> float:
    return math.exp(min(float(nats), 50.0))


def no_training() -> Figure:
    """A placeholder for the losses where no weight was trained."""
    figure = Figure(figsize=(WHOLE, 1.2), facecolor=PAPER)
    figure.text(0.5, 0.5, "Nothing was trained: the weights are those of the base model.", ha="center", color=INK)
    return figure


def training(runs: Mapping[str, Sequence[Row]], *, only: Sequence[str] | None = None, width: float = WHOLE) -> Figure:
    """Training loss by step of each run by its title, in panels with the same loss axis; ``only`` these are drawn."""
    drawn = [title for title in runs if only is None or title in only]
    figure, grid = panels_of(len(drawn), columns=min(len(drawn), 3), height=3.6, width=width)
    losses = [float(row["loss"]) for rows in runs.values() for row in rows]
    colours = dict(zip(runs, cycle(("#cc79a7", "#d55e00", "#555555")), strict=False))
    for title, axes in zip(drawn, grid, strict=True):
        rows, colour = runs[title], colours[title]
        steps = [int(row["step"]) for row in rows]
        loss = [float(row["loss"]) for row in rows]
        axes.plot(steps, loss, color=colour, alpha=0.35, linewidth=1)
        # Over a tenth of the run, shorter at the ends.
        mean = pd.Series(loss).rolling(2 * max(len(loss) // 20, 1) + 1, center=True, min_periods=1).mean()
        axes.plot(steps, mean, color=colour, linewidth=2.2)
        axes.set_ylim(min(losses) - 0.05, float(np.quantile(losses, 0.995)) + 0.1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("optimizer step")
        axes.set_title(title, fontsize=10.5, loc="left")
    grid[0].set_ylabel("training loss, nats per token")
    return figure
