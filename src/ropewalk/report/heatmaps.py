"""Passkey accuracy and query scales as heat maps; rows and size as in `ropewalk.report.plots`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.report.style import FAINT, MODELS, PAPER, WHOLE, in_order, panels_of, short_length, style
from ropewalk.report.tables import MODEL_NAMES


def passkey_panels(table: ResultTable) -> dict[tuple[str, str], ResultTable]:
    """Rows of each model and method, in the order in which they are compared: base, base with ours, fine-tuned."""
    models = [*MODELS, *(model for model in table.values("model") if model not in MODELS)]
    methods = in_order(dict.fromkeys(table.values("method")))
    panels = {(model, method): table.where(model=model, method=method) for model in models for method in methods}
    return {key: panel for key, panel in panels.items() if len(panel)}


def passkey(table: ResultTable, *, only: tuple[str, str] | None = None, width: float = WHOLE) -> Figure:
    """Accuracy by length and depth in per cent, a panel per model and method (or for ``only`` one) on the same axes."""
    panels = {key: panel for key, panel in passkey_panels(table).items() if only in (None, key)}
    figure, grid = panels_of(len(panels), columns=min(len(panels), 3), height=3.4, width=width)
    for place, (((model, method), panel), axes) in enumerate(zip(panels.items(), grid, strict=True)):
        _heat_map(axes, panel, lengths=table.lengths(), depths=sorted(table.values("depth")))
        axes.set_xlabel("input length, tokens (trials)")
        if place % 3 == 0:
            axes.set_ylabel("depth of the key")
        axes.set_title(f"{MODEL_NAMES.get(model, model)}, {style(method)[0]}", fontsize=10.5, loc="left")
    return figure


def query_scales(scales: Sequence[Sequence[float]], *, width: float = WHOLE) -> Figure:
    """Query scales by layer and head, or by layer and each head's pairs one head after another."""
    figure, (axes,) = panels_of(1, columns=1, height=3.4, width=width)
    table = np.asarray(scales)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    # Unless rasterized, each cell would be a shape of its own in the page.
    places = (np.arange(table.shape[1]), np.arange(table.shape[0]))
    mesh = axes.pcolormesh(*places, table, shading="nearest", cmap="cividis", rasterized=table.size > 2_000)
    axes.set_xlabel("scale of the layer, head by head")
    axes.set_ylabel("layer that attends")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(mesh, ax=axes, label="scale of the queries")
    return figure


# Their own shades of white and black: a page that swaps paper and ink must not swap what stands on a coloured cell.
_ON_DARK, _ON_LIGHT = "#fefefe", "#010101"


def _heat_map(axes: Axes, table: ResultTable, *, lengths: Sequence[int], depths: Sequence[float]) -> None:
    sums = table.frame.pivot_table(index="depth", columns="length", values=["trials", "correct"], aggfunc="sum")
    trials, correct = (sums[name].reindex(index=depths, columns=lengths).fillna(0) for name in ("trials", "correct"))
    accuracy = (100 * correct / trials.where(trials > 0)).to_numpy()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.pcolormesh(accuracy, cmap="cividis", vmin=0, vmax=100, edgecolors=PAPER, linewidth=0.8)
    axes.invert_yaxis()
    for (row_index, column), value in np.ndenumerate(accuracy):
        text, colour = ("–", FAINT) if np.isnan(value) else (f"{value:.0f}", _ON_DARK if value < 45 else _ON_LIGHT)
        axes.text(column + 0.5, row_index + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    counts = trials.to_numpy().sum(axis=0)
    ticks = [
        f"{short_length(length)}\n({count:.0f})" if count else short_length(length)
        for length, count in zip(lengths, counts, strict=True)
    ]
    axes.set_xticks([place + 0.5 for place in range(len(lengths))], ticks)
    axes.set_yticks([place + 0.5 for place in range(len(depths))], [f"{100 * depth:.0f} %" for depth in depths])
    axes.tick_params(length=0, labelsize=8.5)
