"""Every figure is written as a PNG that opens, is 1,350 pixels wide and shows something."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.files import read_table
from ropewalk.report import heatmaps, plots, style
from ropewalk.rope import methods
from ropewalk.rope.methods import inverse_frequencies

from .conftest import PAIRS, WINDOW


def search_of(folder: Path) -> Figure:
    return plots.search(
        {name: read_table(folder / f"{name}.csv") for name in ("search_first", "search_second", "recover")}
    )


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "perplexity": lambda folder: plots.perplexity(ResultTable.read(folder / "perplexity.csv"), original_length=WINDOW),
    "factors": lambda folder: plots.factors(read_table(folder / "factors.csv")),
    "search": search_of,
    "training": lambda folder: plots.training({"first": read_table(folder / "finetune_first.csv")}),
    "passkey": lambda folder: heatmaps.passkey(ResultTable.read(folder / "passkey.csv")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_png_that_is_not_blank_and_has_labelled_axes(
    name: str, whole_results: Path, tmp_path: Path
) -> None:
    figure = FIGURES[name](whole_results / "plots")
    style.save(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert image.width == 1350
        grey = np.asarray(image.convert("L"))
    assert 0.02 < np.mean(grey < 250) < 0.9
    assert len(np.unique(grey)) > 20
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)


def narrow(folder: Path) -> list[Figure]:
    """The panels that the page shows side by side."""
    search, recover, training = (
        read_table(folder / f"{name}.csv") for name in ("search_first", "recover", "finetune_first")
    )
    return [
        plots.search({"Second search": search}, width=style.THIRD),
        plots.search({"Recovery": recover}, width=style.THIRD),
        plots.training({"first part": training}, width=style.THIRD),
        *(
            plots.perplexity(table, original_length=WINDOW, width=style.HALF)
            for _, table in ResultTable.read(folder / "perplexity.csv").groups("model")
        ),
        plots.factors(read_table(folder / "factors.csv"), width=style.HALF),
        heatmaps.passkey(ResultTable.read(folder / "passkey.csv"), only=("finetuned", "ours"), width=style.THIRD),
    ]


def test_nothing_is_cut_off_at_a_figures_edge(whole_results: Path) -> None:
    for figure in [*narrow(whole_results / "plots"), *(make(whole_results / "plots") for make in FIGURES.values())]:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = figure.get_tightbbox(canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert min(drawn.x0, drawn.y0) >= 0
        assert drawn.x1 <= width
        assert drawn.y1 <= height


def labels_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_perplexity_has_a_panel_per_model_a_line_per_method_and_the_window(whole_results: Path) -> None:
    figure = FIGURES["perplexity"](whole_results / "plots")
    base, tuned = figure.axes
    assert base.get_title(loc="left").startswith("base model")
    assert tuned.get_title(loc="left").startswith("after fine-tuning")
    assert {"plain RoPE", "PI", "NTK-aware", "dynamic NTK", "YaRN", "ours"} < set(labels_of(figure))
    assert any("training window" in text.get_text() for text in base.texts)
    (ntk,) = (line for line in base.lines if line.get_color() == style.style("ntk")[1])
    assert list(ntk.get_ydata()) == [7.9, 8.6, 11.0, 13.3]
    filled, opened = (line for line in tuned.lines if line.get_color() == style.style("ours")[1])
    assert list(filled.get_xdata()) == [256, 512, 1024, 2048]
    assert list(opened.get_xdata()) == [2048, 8192, 16_384]
    assert opened.get_markerfacecolor() == style.PAPER


def test_rows_with_an_interval_have_a_band_and_those_without_none(whole_results: Path) -> None:
    rows = [row for row in read_table(whole_results / "plots/perplexity.csv") if row["method"] == "ours"]
    banded = [row | {"low": row["perplexity"] * 0.9, "high": row["perplexity"] * 1.1} for row in rows]
    assert not plots.perplexity(ResultTable.from_rows(rows), original_length=WINDOW).axes[0].collections
    base, _ = plots.perplexity(ResultTable.from_rows(banded), original_length=WINDOW).axes
    (band,) = base.collections
    heights = band.get_paths()[0].vertices[:, 1]
    values = [row["perplexity"] for row in rows if row["model"] == "base"]
    assert heights.min() == pytest.approx(0.9 * min(values))
    assert heights.max() == pytest.approx(1.1 * max(values))


def test_factors_stand_against_frequency_with_the_critical_dimension_marked(whole_results: Path) -> None:
    rows = read_table(whole_results / "plots/factors.csv")
    frequencies = inverse_frequencies(2 * PAIRS, 10_000.0)
    (axes,) = plots.factors(rows, frequencies=frequencies, critical=13).axes
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "high frequencies on the left, as pair 0 is"
    assert list(axes.lines[0].get_xdata()) == pytest.approx(frequencies)
    assert [text.get_text() for text in axes.texts] == ["critical dimension 26"]
    assert list(axes.lines[-1].get_xdata()) == [frequencies[13]] * 2


def test_passkey_panels_are_base_base_with_our_factors_and_fine_tuned_in_that_order(whole_results: Path) -> None:
    rows = read_table(whole_results / "plots/passkey.csv")
    rows += [row | {"method": "ours"} for row in rows if row["model"] == "base"]
    figure = heatmaps.passkey(ResultTable.from_rows(rows))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["base model, plain RoPE", "base model, ours", "fine-tuned, ours"]
    assert len({tuple(axes.get_position().bounds[1::2]) for axes in figure.axes}) == 1, "side by side"
    (axes,) = heatmaps.passkey(ResultTable.from_rows(rows), only=("base", "ours"), width=style.THIRD).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{5 + 10 * d} %" for d in range(10)]


def test_a_method_has_one_colour_in_every_figure_and_no_two_share_one() -> None:
    colours = [style.style(name)[1] for name in methods.METHODS]
    drawn = [style.style(name) for name in (*methods.baselines(), "ours")]
    assert len({colour for _, colour, _, _ in drawn}) == len({marker for *_, marker in drawn}) == len(drawn)
    assert all(colour.startswith("#") for colour in colours)
    assert style.style("my_method")[0] == "my method"


def test_passkey_cells_print_the_accuracy_and_cells_without_trials_a_dash() -> None:
    rows = [
        {"model": "finetuned", "method": "ours", "length": 256, "depth": 0.0, "trials": 4, "correct": 3},
        {"model": "finetuned", "method": "ours", "length": 512, "depth": 1.0, "trials": 4, "correct": 4},
    ]
    texts = [text.get_text() for text in heatmaps.passkey(ResultTable.from_rows(rows)).axes[0].texts]
    assert sorted(texts) == ["100", "75", "–", "–"]


def test_a_file_with_one_length_or_one_trial_still_makes_a_figure(tmp_path: Path) -> None:
    search = [
        {
            "phase": "evolution",
            "length": 64,
            "trial": 0,
            "generation": 0,
            "loss": float("inf"),
            "best": 2.0,
            "tokens": 64,
        }
    ]
    style.save(plots.search({"search": search}), tmp_path / "search.png")
    one = {
        "model": "base",
        "method": "none",
        "variant": "",
        "length": 64,
        "perplexity": 9.0,
        "documents": 1,
        "tokens": 63,
    }
    table = ResultTable.from_rows([one | {"document_set": "all"}])
    style.save(plots.perplexity(table, original_length=64), tmp_path / "perplexity.png")
    step = {"step": 1, "loss": 3.0, "learning_rate": 0.1, "tokens_per_second": 10.0, "peak_mib": 3.0}
    style.save(plots.training({"first": [step]}), tmp_path / "training.png")
