"""How every figure looks: a label, colour, line and marker per method, axes, panels, and saving."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ropewalk.files import writing

Row = dict[str, Any]

INK, FAINT = "#222222", "#8a8a8a"
STYLES: dict[str, tuple[str, str, str, str]] = {
    # label, colour (Okabe and Ito's, told apart by the colour-blind), line, marker
    "none": ("plain RoPE", "#555555", "--", "X"),
    "pi": ("PI", "#e69f00", "-", "s"),
    "ntk": ("NTK-aware", "#56b4e9", "-", "^"),
    "dynamic_ntk": ("dynamic NTK", "#009e73", "-", "v"),
    "abf": ("ABF", "#b8a800", "-", "h"),
    "yarn": ("YaRN", "#0072b2", "-", "D"),
    "llama3": ("Llama 3", "#7a5195", "-", "<"),
    "longrope": ("LongRoPE", "#cc79a7", "-", "*"),
    "control": ("control, trained in the short window", "#000000", ":", "P"),
    "seed": ("gradient alone", "#cc79a7", "-", "o"),
    "ours": ("ours", "#d55e00", "-", "o"),
}
_SPARE = ("#7a5195", "#3d7a00", "#a05000", "#4b4b9f")
OURS = ("#f5a26b", "#e07b33", "#d55e00", "#a34700", "#6b2e00")
"""Light to dark, for our factors by input length."""
MODELS = {
    "base": "base model, no training",
    "finetuned": "after fine-tuning",
    "rivals": "each fine-tuned under its own factors",
}
PAPER, GRID, BAND = "#ffffff", "#e6e6e6", "#f3ead8"
WHOLE, HALF, THIRD = 9.0, 4.6, 3.6
"""Widths of figures in inches: a PNG with every panel, and one panel of the page beside one or two others."""


def style(name: str) -> tuple[str, str, str, str]:
    """(label, colour, line, marker) of a method, the same in every figure; names not known get a grey of their own."""
    return STYLES.get(name, (name.replace("_", " "), _SPARE[sum(name.encode()) % len(_SPARE)], "-.", "."))


def legend(figure: Figure, handles: Mapping[str, Any], *, columns: int = 4) -> None:
    """Below the panels, in as many columns as the figure's width has room for."""
    width = figure.get_figwidth()
    columns = 1 if width <= THIRD else columns if width > HALF else max(columns // 2, 1)
    labels = [str(label) for label in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def in_order(lines: Mapping[str, Any]) -> list[str]:
    """Names in the order of `STYLES`, ours last and so on top; unknown ones after them."""
    return [*(name for name in STYLES if name in lines), *(name for name in lines if name not in STYLES)]


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
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def plain_number(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def token_count(value: float, _: object = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def log_y(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, few decades included, since matplotlib labels powers of ten only."""
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
