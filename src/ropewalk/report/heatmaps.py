"""Passkey accuracy by length and depth, as heat maps; rows and size as in `ropewalk.report.plots`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropewalk.report.style import FAINT, MODELS, PAPER, WHOLE, Row, groups, in_order, panels_of, short_length, style


def passkey_panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each model and method, in the order in which they are compared: base, base with ours, fine-tuned."""
    found = groups(rows, lambda row: (str(row["model"]), str(row["method"])))
    models = [*MODELS, *dict.fromkeys(model for model, _ in found if model not in MODELS)]
    methods = in_order({method: None for _, method in found})
    return {(model, method): found[model, method] for model in models for method in methods if (model, method) in found}


def passkey(rows: Sequence[Row], *, only: tuple[str, str] | None = None, width: float = WHOLE) -> Figure:
    """Accuracy by length and depth, in per cent in every cell, one panel per model and method on the same axes.

    ``only`` is the (model, method) that is drawn.
    """
    panels = {key: own for key, own in passkey_panels(rows).items() if only in (None, key)}
    figure, grid = panels_of(len(panels), columns=min(len(panels), 3), height=3.4, width=width)
    lengths = sorted({int(row["length"]) for row in rows})
    depths = sorted({float(row["depth"]) for row in rows})
    for place, (((model, method), own), axes) in enumerate(zip(panels.items(), grid, strict=True)):
        _heat_map(axes, own, lengths=lengths, depths=depths)
        axes.set_xlabel("input length, tokens (trials)")
        if place % 3 == 0:
            axes.set_ylabel("depth of the key")
        axes.set_title(f"{_SHORT.get(model, model)}, {style(method)[0]}", fontsize=10.5, loc="left")
    return figure


_SHORT = {"base": "base model", "finetuned": "fine-tuned"}
# Their own shades of white and black: a page that swaps paper and ink must not swap what stands on a coloured cell.
_ON_DARK, _ON_LIGHT = "#fefefe", "#010101"


def _heat_map(axes: Axes, rows: Sequence[Row], *, lengths: Sequence[int], depths: Sequence[float]) -> None:
    trials = np.zeros((len(depths), len(lengths)))
    correct = np.zeros_like(trials)
    for row in rows:
        place = depths.index(float(row["depth"])), lengths.index(int(row["length"]))
        trials[place] += float(row["trials"])
        correct[place] += float(row["correct"])
    accuracy = np.divide(100 * correct, trials, out=np.full_like(trials, np.nan), where=trials > 0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.pcolormesh(accuracy, cmap="cividis", vmin=0, vmax=100, edgecolors=PAPER, linewidth=0.8)
    axes.invert_yaxis()
    for (row_index, column), value in np.ndenumerate(accuracy):
        text, colour = ("–", FAINT) if np.isnan(value) else (f"{value:.0f}", _ON_DARK if value < 45 else _ON_LIGHT)
        axes.text(column + 0.5, row_index + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    counts = trials.sum(axis=0)
    ticks = [
        f"{short_length(length)}\n({count:.0f})" if count else short_length(length)
        for length, count in zip(lengths, counts, strict=True)
    ]
    axes.set_xticks([place + 0.5 for place in range(len(lengths))], ticks)
    axes.set_yticks([place + 0.5 for place in range(len(depths))], [f"{100 * depth:.0f} %" for depth in depths])
    axes.tick_params(length=0, labelsize=8.5)
