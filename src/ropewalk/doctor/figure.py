"""The losses of a diagnosis by position, as a figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from ropewalk.doctor.diagnosis import Diagnosis
from ropewalk.report.style import FAINT, INK, OURS, panels_of, style

_POINTS = 64
"""Number of means that are drawn of each curve."""


def diagnosis_figure(diagnoses: Sequence[Diagnosis]) -> Figure:
    """A panel per runtime: its losses, those under the stated scaling, and those under plain RoPE."""
    figure, panels = panels_of(len(diagnoses), columns=min(len(diagnoses), 2), height=4.4)
    for axes, diagnosis in zip(panels, diagnoses, strict=True):
        losses = diagnosis.losses
        _, colour, line, _ = style("none")
        axes.plot(*_means(losses.plain), line, color=colour, label="plain RoPE")
        axes.plot(
            *_means(losses.scaled), "-", color=OURS[2], linewidth=4, alpha=0.5, label="with the scaling (Ropewalk)"
        )
        axes.plot(*_means(losses.runtime), "-", color=INK, linewidth=1.2, label="the runtime")
        axes.axvline(diagnosis.window, color=FAINT, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position, tokens (log scale)")
        axes.set_ylabel("loss, nats")
        axes.set_title(f"{diagnosis.runtime}; the upright line is the window", fontsize=10.5, loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    return figure


def _means(losses: Tensor) -> tuple[list[float], list[float]]:
    """Middle positions of ranges that grow by a constant factor, and the mean loss in each."""
    edges = sorted({round(len(losses) ** (step / _POINTS)) for step in range(_POINTS + 1)})
    ranges = list(zip([0, *edges[:-1]], edges, strict=True))
    middles = [(first + last + 1) / 2 for first, last in ranges]
    return middles, [float(losses[first:last].mean()) for first, last in ranges]
