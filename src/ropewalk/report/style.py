"""How every figure looks: a label, colour, line and marker per method, axes, panels, and saving."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ropewalk.evaluate.result_table import Row
from ropewalk.files import writing
from ropewalk.rope.methods import METHODS

INK, FAINT = "#222222", "#8a8a8a"
_OTHER_LINES: dict[str, tuple[str, str, str, str]] = {
    "control": ("control, trained in the short window", "#000000", ":", "P"),
    "gradient": ("gradient alone", "#cc79a7", "-", "o"),
    "ours": ("ours", "#d55e00", "-", "o"),
}
_SPARE = ("#7a5195", "#3d7a00", "#a05000", "#4b4b9f")
OURS = ("#f5a26b", "#e07b33", "#d55e00", "#a34700", "#6b2e00")
"""Light to dark, for our factors by input length."""
MODELS = {
    "base": "base model, no training",
    "finetuned": "after fine-tuning",
    "trained_baselines": "each fine-tuned under its own factors",
}
PAPER, GRID, BAND = "#ffffff", "#e6e6e6", "#f3ead8"
WHOLE, HALF, THIRD = 9.0, 4.6, 3.6
"""Widths of figures in inches: a PNG with every panel, and one panel of the page beside one or two others."""


def style(name: str) -> tuple[str, str, str, str]:
    """(label, colour, line, marker) of a method, the same in every figure; an unknown name gets a spare colour."""
    if method := METHODS.get(name):
        return method.display_name, method.colour, method.line, method.marker
    return _OTHER_LINES.get(name, (name.replace("_", " "), _SPARE[sum(name.encode()) % len(_SPARE)], "-.", "."))


def legend(figure: Figure, handles: Mapping[str, Any], *, columns: int = 4) -> None:
    """Draw the legend below the panels, in as many columns as the figure's width has room for."""
    width = figure.get_figwidth()
    columns = 1 if width <= THIRD else columns if width > HALF else max(columns // 2, 1)
    figure.legend(handles.values(), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def in_order(lines: Mapping[str, Any]) -> list[str]:
    """Names in the order of the registered methods, ours after them and so on top; unknown ones last."""
    known = [*METHODS, *_OTHER_LINES]
    return [*(name for name in known if name in lines), *(name for name in lines if name not in known)]


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, 1,350 pixels wide."""
    FigureCanvasAgg(figure)
    with writing(path) as aside:
        figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})


def panels_of(panels: int, *, columns: int, height: float, width: float = WHOLE) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in grid[panels:]:
        spare.remove()
    for axes in grid[:panels]:
        axes.set_facecolor(PAPER)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9.5, colors=INK)
    return figure, grid[:panels]


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by their key, in order of the first row of each."""
    by_key: dict[Any, list[Row]] = {}
    for row in rows:
        by_key.setdefault(key(row), []).append(row)
    return by_key


def plain_number(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def token_count(value: float, _: object = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def log_y(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, also over few decades, where matplotlib would label powers of ten only."""
    axes.set_yscale("log")
    low, high = min(values), max(values)
    fine = high / low < 4
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if fine else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))


def short_length(length: int) -> str:
    """A length as papers write it: 2,048 tokens are 2k."""
    return f"{length // 1024:,}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    shown = lengths[:: math.ceil(len(lengths) / 10)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [short_length(length) for length in shown])
    axes.minorticks_off()
    axes.set_xlabel("input length, tokens (log scale)")
