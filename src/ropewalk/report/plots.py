"""Figures of a run from the rows of its CSV files, readable at 900 pixels and without telling colours apart.

Rows are dictionaries as `ropewalk.files.read_table` gives them. No pyplot: nothing global.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ropewalk.report.style import (
    BAND,
    FAINT,
    INK,
    MODELS,
    OURS,
    PAPER,
    THIRD,
    WHOLE,
    Row,
    groups,
    in_order,
    legend,
    length_axis,
    log_y,
    panels_of,
    style,
    token_count,
)


def best_case(rows: Iterable[Row]) -> dict[int, Row]:
    """Per length the row with the lowest perplexity: a method's best variant."""
    best: dict[int, Row] = {}
    for row in rows:
        length = int(row["length"])
        if length not in best or float(row["perplexity"]) < float(best[length]["perplexity"]):
            best[length] = row
    return dict(sorted(best.items()))


def perplexity(rows: Sequence[Row], *, original_length: int, width: float = WHOLE) -> Figure:
    """Perplexity against length, one line per method in its best case, one panel per model; the control beside it.

    Figures on different document sets are different lines of one colour, filled and open, since they do not compare.
    Rows with ``low`` and ``high`` have a band between them.
    """
    panels = [model for model in MODELS if any(row["model"] == model for row in rows)]
    figure, grid = panels_of(max(len(panels), 1), columns=2 if len(panels) > 1 else 1, height=4.4, width=width)
    handles: dict[str, Any] = {}
    for model, axes in zip(panels, grid, strict=False):
        shown = [(row["method"], row) for row in rows if row["model"] == model and row["method"] != "seed"]
        if model == "finetuned":
            shown += [("control", row) for row in rows if row["model"] == "control"]
        lines = groups((row | {"line": line} for line, row in shown), lambda row: (row["line"], row["document_set"]))
        for method in in_order({line: None for line, _ in lines}):
            for documents, filled in (("all", True), ("long", False)):
                if (method, documents) in lines:
                    handles |= _perplexity_line(axes, method, best_case(lines[method, documents]), filled=filled)
        _perplexity_axes(axes, [row for _, row in shown], original_length)
        axes.set_title(MODELS[model], fontsize=11, loc="left")
    if any(row["document_set"] == "long" for row in rows):
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


def is_number(value: Any) -> bool:
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
    axes.annotate(
        "training window", (original_length, 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
        textcoords="offset points", fontsize=8.5, color="#5c5c5c", va="top",
    )  # fmt: skip
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.15)
    axes.set_ylabel(f"perplexity per token{' (log scale)' if axes.get_yscale() == 'log' else ''}")


def factors(
    rows: Sequence[Row], *, frequencies: Sequence[float] = (), critical: int | None = None, width: float = WHOLE
) -> Figure:
    """Rescale factors lambda, published methods beside ours (names that begin with "ours").

    Args:
        frequencies: of each pair under plain RoPE, in radians per token; with them the factors stand against
            frequency, and the pairs' numbers above.
        critical: the first pair that does not turn once in the training window, marked.
    """
    figure, (axes,) = panels_of(1, columns=1, height=4.4, width=width)
    lines = groups(rows, lambda row: str(row["factors_of"]))
    own = [name for name in lines if name.startswith("ours")]
    handles: dict[str, Any] = {}
    for name in [*(name for name in in_order(lines) if name not in own), *own]:
        label, colour, line, marker = style(name)
        if name in own:
            place = own.index(name)
            shade = round(place * (len(OURS) - 1) / max(len(own) - 1, 1)) if len(own) > 1 else 2
            colour, line, marker = OURS[shade], "-", "osD^vP"[place % 6]
        ordered = sorted(lines[name], key=lambda row: int(row["pair"]))
        pairs = [int(row["pair"]) for row in ordered]
        (handles[label],) = axes.plot(
            [frequencies[pair] for pair in pairs] if frequencies else pairs,
            [float(row["lambda"]) for row in ordered], line, color=colour, marker=marker, markersize=4,
            linewidth=2.4 if name in own else 1.4, zorder=4 if name in own else 3,
        )  # fmt: skip
    log_y(axes, [float(row["lambda"]) for row in rows])
    axes.set_ylabel("rescale factor λ (log scale)")
    if frequencies:
        _frequency_axis(axes, frequencies)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("dimension pair, from the highest frequency to the lowest")
    if critical is not None and critical < len(frequencies or range(critical + 1)):
        axes.axvline(frequencies[critical] if frequencies else critical, color=FAINT, linewidth=1.2, zorder=1)
        axes.annotate(
            f"critical dimension {2 * critical}", (frequencies[critical] if frequencies else critical, 0),
            xycoords=("data", "axes fraction"), xytext=(4, 4), textcoords="offset points", fontsize=8.5,
            color="#5c5c5c", va="bottom",
        )  # fmt: skip
    legend(figure, handles)
    return figure


def searched_factors(rows: Sequence[Row]) -> Figure:
    """The best factors for each length among ``rows`` of a search."""
    whole = groups(
        (row for row in rows if row["phase"] != "gradient" and is_number(row["loss"])), lambda row: row["length"]
    )
    best = {length: min(own, key=lambda row: float(row["loss"])) for length, own in whole.items()}
    return factors(
        [
            {"factors_of": f"ours, {length:,} tokens", "pair": int(name.removeprefix("lambda_")), "lambda": value}
            for length, row in best.items()
            for name, value in row.items()
            if name.startswith("lambda_")
        ]
    )


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
    """Perplexity on search documents over tokens paid: trials as dots, the best so far as a line.

    Steps of a gradient read rows of their own each, whose losses do not compare, so that they have no line.

    ``runs`` maps a title to the rows of one search; each length of it has a panel.
    """
    panels = [
        (f"{title}, {length:,} tokens", own)
        for title, rows in runs.items()
        for length, own in groups(rows, lambda row: int(row["length"])).items()
    ]
    # A narrow one has its legend in lines.
    height = 3.6 if width > THIRD else 4.2
    figure, grid = panels_of(len(panels), columns=min(len(panels), 3), height=height, width=width)
    handles: dict[str, Any] = {}
    for place, ((title, rows), axes) in enumerate(zip(panels, grid, strict=True)):
        handles |= _search_panel(axes, rows)
        axes.set_title(title, fontsize=10.5, loc="left")
        axes.set_xlabel("tokens paid in forward passes")
        if place % 3 == 0:
            axes.set_ylabel("perplexity, search documents (log)")
    legend(figure, handles)
    return figure


_PHASES = {
    "published": ("published method", "#0072b2", "D"),
    "gradient": ("gradient step, on rows of its own", "#009e73", "s"),
    "learned": ("where the gradient ends", "#009e73", "P"),
    "evolution": ("evolution, best so far", "#d55e00", "o"),
}


def _search_panel(axes: Axes, rows: Sequence[Row]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    shown: list[float] = []
    phases = groups(rows, lambda row: row["phase"])
    for phase, (label, colour, marker) in _PHASES.items():
        own = sorted(phases.get(phase, []), key=lambda row: float(row["tokens"]))
        if not own:
            continue
        # A trial that was stopped early has no loss of its own.
        whole = [row for row in own if row["loss"] not in (None, "")]
        if not whole:
            continue
        own = [row for row in own if row["best"] not in (None, "")]
        paid, scores = [float(row["tokens"]) for row in whole], [_exp(row["loss"]) for row in whole]
        if phase in ("published", "learned"):
            handles[label] = axes.scatter(paid, scores, s=26, marker=marker, color=colour, zorder=4)
            shown.append(min(scores))
            continue
        if phase == "gradient":
            handles[label] = axes.scatter(paid, scores, s=12, marker=marker, color=colour, alpha=0.6, zorder=2)
            # Steps of a row or two differ by their text alone; where there is a line they must not press it flat.
            if "evolution" not in phases:
                shown += [float(np.quantile(scores, share)) for share in (0.05, 0.95)]
            continue
        line = [_exp(row["best"]) for row in own]
        axes.scatter(paid, scores, s=9, marker=marker, color=colour, alpha=0.3, linewidths=0, zorder=2)
        (handles[label],) = axes.plot(
            [float(row["tokens"]) for row in own], line, color=colour, linewidth=2.2, drawstyle="steps-post", zorder=3
        )
        ends = _generations(own)
        axes.scatter([x for x, _ in ends], [y for _, y in ends], s=22, marker="|", color=INK, zorder=5)
        shown += [*line, float(np.quantile(scores, 0.75))]
    # The worst trials would press everything else into a line.
    log_y(axes, [min(shown) / 1.03, max(shown) * 1.06])
    axes.set_ylim(min(shown) / 1.03, max(shown) * 1.06)
    axes.xaxis.set_major_formatter(FuncFormatter(token_count))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    return handles


def _generations(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(tokens, best) at the last trial of every generation."""
    last = {row["generation"]: row for row in rows}
    return [(float(row["tokens"]), _exp(row["best"])) for row in last.values()]


def _exp(nats: Any) -> float:
    return math.exp(min(float(nats), 50.0))


def training(runs: Mapping[str, Sequence[Row]], *, only: Sequence[str] | None = None, width: float = WHOLE) -> Figure:
    """Training loss by step; ``runs`` maps a title to the rows of one run, each in a panel with the same loss axis.

    ``only`` names the runs that are drawn.
    """
    drawn = [title for title in runs if only is None or title in only]
    figure, grid = panels_of(len(drawn), columns=min(len(drawn), 3), height=3.6, width=width)
    losses = [float(row["loss"]) for rows in runs.values() for row in rows]
    colours = dict(zip(runs, cycle(("#cc79a7", "#d55e00", "#555555")), strict=False))
    for title, axes in zip(drawn, grid, strict=True):
        rows, colour = runs[title], colours[title]
        steps = [int(row["step"]) for row in rows]
        loss = np.array([float(row["loss"]) for row in rows])
        axes.plot(steps, loss, color=colour, alpha=0.35, linewidth=1)
        axes.plot(steps, _smooth(loss), color=colour, linewidth=2.2)
        axes.set_ylim(min(losses) - 0.05, float(np.quantile(losses, 0.995)) + 0.1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("optimizer step")
        axes.set_title(title, fontsize=10.5, loc="left")
    grid[0].set_ylabel("training loss, nats per token")
    return figure


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Running mean over a tenth of the run, shorter windows at the ends."""
    half = max(len(values) // 20, 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    smooth: np.ndarray[Any, Any] = (sums[high] - sums[low]) / (high - low)
    return smooth
