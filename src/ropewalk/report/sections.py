"""The sections of the page, each from the files of a stage or two: sentences, tables and pictures.

A section's pictures are also written as one PNG, for other pages and DVC's plots.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ropewalk.report import heatmaps, plots, scores, style, tables
from ropewalk.report.costs import cost_table
from ropewalk.report.datacard import data_sentences, data_tables
from ropewalk.report.results import Results
from ropewalk.report.style import HALF, THIRD, Row
from ropewalk.report.svg import inline
from ropewalk.report.tables import Table
from ropewalk.rope.methods import critical_pair, inverse_frequencies


@dataclass(frozen=True)
class Picture:
    """Panels that stand beside each other where there is room, and below each other on a phone."""

    panels: tuple[Markup, ...]
    caption: str
    size: str
    """half or third: the width of a panel."""


@dataclass(frozen=True)
class Section:
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: tuple[str, ...] = ()
    """Lines on files that are not there and the stages that make them."""
    folded: bool = False
    """Whether the tables are closed until one opens them."""


Panels = Sequence[tuple[str, Figure]]
"""What each panel shows, for those who do not see it, and the panel."""


def _picture(files: Results, name: str, whole: Figure | None, panels: Panels, *, caption: str, size: str) -> Picture:
    if whole is not None:
        style.save(whole, files.plots / f"{name}.png")
    drawn = [Markup(inline(panel, name=f"{name}{place}", alt=alt)) for place, (alt, panel) in enumerate(panels)]
    return Picture(tuple(drawn), caption, size)


def sections(files: Results, config: Mapping[str, Any], base: Mapping[str, Any]) -> list[Section]:
    """Every section for which there are results, and those without whose stages are part of every run."""
    perplexity = tables.with_rivals(files.rows("plots/perplexity.csv", "evaluate"))
    original = int(base.get("original_length") or tables.setting(config, "model.original_length") or 1)
    makers: Sequence[Callable[[], Section | None]] = (
        lambda: _perplexity(files, perplexity, original),
        lambda: _passkey(files),
        lambda: _needles(files),
        lambda: _factors(files, base),
        lambda: _search(files, config, perplexity),
        lambda: _training(files, config, original),
        lambda: _benchmarks(files),
        lambda: _retrieval(files),
        lambda: _export(files),
        lambda: _data(files),
    )
    return [section for make in makers if (section := make()) is not None]


def _perplexity(files: Results, rows: list[Row], original: int) -> Section:
    pictures: tuple[Picture, ...] = ()
    models = [model for model in style.MODELS if any(row["model"] == model for row in rows)]
    if models:
        panels = []
        for model in models:
            beside = ("control",) if model == "finetuned" else ()
            own = [row for row in rows if row["model"] in (model, *beside)]
            alt = f"Perplexity against input length, {style.MODELS[model]}, one line per method"
            panels.append((alt, plots.perplexity(own, original_length=original, width=HALF)))
        caption = "Each baseline in its best case. Filled and open marks are of different documents and do not compare."
        if any(plots.is_number(row.get("low")) for row in rows):
            caption += " Bands are 95 % intervals by bootstrap over documents."
        whole = plots.perplexity(rows, original_length=original)
        pictures = (_picture(files, "perplexity", whole, panels, caption=caption, size="half"),)
    sentences = (
        "A baseline gets its best case: the scale for each length or for the target, and on the fine-tuned model "
        "either in place of our factors or on top of them. The small print in a cell says which it was. "
        "The lowest is set in bold.",
    )
    found = tuple(tables.perplexity_tables(rows))
    if compared := files.optional_rows("plots/paired.csv"):
        found = (*found, scores.paired_table(compared))
    return Section("Perplexity", sentences if rows else (), found, pictures, files.noted())


def _passkey(files: Results) -> Section:
    rows = files.rows("plots/passkey.csv", "evaluate")
    if not rows:
        return Section("Passkey", missing=files.noted())
    caption = "Accuracy in per cent by input length and depth of the key (0 % is the start); trials in brackets."
    panels = [
        (
            f"Passkey accuracy, {style.MODELS.get(model, model)}, {style.style(method)[0]}",
            heatmaps.passkey(rows, only=(model, method), width=THIRD),
        )
        for model, method in heatmaps.passkey_panels(rows)
    ]
    picture = _picture(files, "passkey", heatmaps.passkey(rows), panels, caption=caption, size="third")
    return Section("Passkey", (), (tables.passkey_table(rows),), (picture,), files.noted())


def _factors(files: Results, base: Mapping[str, Any]) -> Section:
    recovered = files.json("factors/recovered.json", "recover")
    rows = files.rows("plots/factors.csv", "evaluate")
    pictures: tuple[Picture, ...] = ()
    if rows:
        marks: dict[str, Any] = {}
        caption = "A factor of 1 leaves a pair as it was; s, the extension ratio, is full interpolation."
        if {"rotary_dim", "base", "original_length"} <= set(base):
            dimension, theta = int(base["rotary_dim"]), float(base["base"])
            critical = critical_pair(rotary_dim=dimension, base=theta, original_length=int(base["original_length"]))
            marks = {"frequencies": inverse_frequencies(dimension, theta), "critical": critical}
            caption += (
                f" The critical dimension is {2 * critical}, pair {critical}: pairs from there on (to its right) "
                "do not turn once within the training window, so longer inputs show them angles that they never met."
            )
        own = [row for row in rows if str(row["factors_of"]).startswith("ours")]
        first = own[-1:] and [row for row in own if row["factors_of"] == _first_target(own)]
        published = [row for row in rows if row not in own]
        panels = [
            (
                "Our rescale factors by frequency, one line per input length",
                plots.factors(own or rows, **marks, width=HALF),
            )
        ]
        if own and published:
            beside = plots.factors([*first, *published], **marks, width=HALF)
            panels.append(("Our rescale factors for the first target beside the published methods'", beside))
        pictures = (_picture(files, "factors", plots.factors(rows, **marks), panels, caption=caption, size="half"),)
    found = (tables.scaling_table(recovered["switch"]),) if recovered else ()
    return Section("Rescale factors", (), found, pictures, files.noted())


def _first_target(rows: Sequence[Row]) -> str:
    """The name of the factors that the published ones are for: the second of ours, or the only one."""
    names = list(dict.fromkeys(str(row["factors_of"]) for row in rows))
    return names[min(1, len(names) - 1)]


def _search(files: Results, config: Mapping[str, Any], perplexity: list[Row]) -> Section:
    names = {"search_first": "First search", "search_second": "Second search", "recover": "Recovery"}
    runs: dict[str, list[Row]] = {}
    sentences = []
    for stage, title in names.items():
        rows = files.rows(f"plots/{stage}.csv", stage)
        if not rows:
            continue
        runs[title] = rows
        measured = files.json(f"metrics/{stage}.json", stage) or {}
        for length in dict.fromkeys(int(row["length"]) for row in rows):
            own = [row for row in rows if int(row["length"]) == length]
            sentences.append(f"{title}. {tables.search_sentence(length, own, measured.get(f'at_{length}', {}))}")
    if gain := tables.evolution_sentence(perplexity):
        sentences.append(gain)
    if not runs:
        return Section("Search and its cost", missing=files.noted())
    caption = (
        "Dots are trials or steps, lines the best trial so far, bars end a generation; the worst trials lie above the "
        "panels. A gradient step reads rows of its own, so that one step's figure does not compare with another's. A "
        "backward pass counts as two forward passes."
    )
    panels = [
        (f"{title} at {length:,} tokens: best perplexity over tokens paid", plots.search({title: own}, width=THIRD))
        for title, rows in runs.items()
        for length, own in style.groups(rows, lambda row: int(row["length"])).items()
    ]
    picture = _picture(files, "search", plots.search(runs), panels, caption=caption, size="third")
    cost = cost_table(files.metrics(), config)
    return Section("Search and its cost", tuple(sentences), (cost,) if cost else (), (picture,), files.noted())


def _training(files: Results, config: Mapping[str, Any], original: int) -> Section:
    names = {"finetune_first": "first part", "finetune_second": "second part", "control": "control"}
    lengths = {
        "finetune_first": tables.setting(config, "finetune.first.length"),
        "finetune_second": tables.setting(config, "finetune.second.length"),
        "control": original if original > 1 else None,
    }
    runs: dict[str, list[Row]] = {}
    body = []
    for name, title in names.items():
        stage = "finetune_second" if name == "control" else name
        rows = files.rows(f"plots/{name}.csv", stage)
        if rows:
            length = f", {lengths[name]:,} tokens" if lengths[name] else ""
            runs[title + length] = rows
            speed = sorted(float(row["tokens_per_second"]) for row in rows)[len(rows) // 2]
            memory = max(float(row["peak_mib"]) for row in rows)
            final = [float(row["loss"]) for row in rows][-max(len(rows) // 10, 1) :]
            loss = f"{sum(final) / len(final):.3f}"
            body.append((title + length, f"{int(rows[-1]['step']):,}", loss, f"{speed:,.0f}", f"{memory:,.0f}"))
    if not runs:
        return Section("Fine-tuning", missing=files.noted())
    header = ("", "last step", "loss, nats (mean of the last tenth)", "tokens per second (median)", "peak memory, MiB")
    caption = (
        "Thin: every step. Thick: running mean over a tenth of the run. Losses at different lengths are on other rows."
    )
    panels = [(f"Training loss by step, {title}", plots.training(runs, only=[title], width=THIRD)) for title in runs]
    picture = _picture(files, "training", plots.training(runs), panels, caption=caption, size="third")
    return Section("Fine-tuning", (), (tables.table("Training", header, body),), (picture,), files.noted())


def _needles(files: Results) -> Section | None:
    rows = files.optional_rows("plots/needles.csv")
    return Section("Needles", (), (scores.needle_table(rows),)) if rows else None


def _benchmarks(files: Results) -> Section | None:
    rows = files.optional_rows("plots/benchmarks.csv")
    return Section("Benchmarks before and after", (), (scores.benchmark_table(rows),)) if rows else None


def _retrieval(files: Results) -> Section | None:
    rows = files.optional_rows("plots/retrieval.csv")
    if not rows:
        return None
    sentences = (
        "The same prompts, answered by the fine-tuned model from the whole document, and by the base model from what "
        "BM25 finds of it within the old window: the share of the answers in what it writes and, where there are wrong "
        "answers to compare with, how often the right one is the likeliest.",
    )
    alt = "Right answers by length of the document, for each way of reading it"
    panels = [
        (f"{alt}, {task.replace('_', ' ')}", scores.retrieval(own, width=HALF))
        for task, own in style.groups(rows, lambda row: str(row["task"])).items()
    ]
    # No PNG, since DVC wants a declared one of every run.
    picture = _picture(files, "retrieval", None, panels, caption=f"{alt}.", size="half")
    return Section("Retrieval or long context?", sentences, (scores.retrieval_table(rows),), (picture,))


def _export(files: Results) -> Section:
    rows = files.rows("plots/export.csv", "export")
    if not rows:
        return Section("Export", missing=files.noted())
    sentences = (
        "What other software loses on the exported checkpoint: it knows no n_hat, and applies one attention factor and "
        "one set of factors (short_factor=same) or two (short_factor=recovered) in place of a scaling by input length.",
    )
    return Section("Export", sentences, (tables.export_table(rows),), (), files.noted())


def _data(files: Results) -> Section:
    card = files.json("tokens/card.json", "prepare")
    if card is None:
        return Section("Data card", missing=files.noted())
    return Section("Data card", tuple(data_sentences(card)), tuple(data_tables(card)), (), files.noted())
