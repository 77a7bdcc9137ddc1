"""The sections of the page, each from the files of a stage or two; its pictures are also one PNG for DVC's plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ropewalk.evaluate.needle_families import family_name
from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.report import heatmaps, plots, scores, style, tables
from ropewalk.report.results import Results, is_trained, searches, setting
from ropewalk.report.sentences import data_sentences, evolution_sentence, query_scales_sentence, search_sentence
from ropewalk.report.style import HALF, THIRD
from ropewalk.report.svg import inline
from ropewalk.report.tables import Table
from ropewalk.rope.methods import inverse_frequencies
from ropewalk.rope.ramps import critical_pair


@dataclass(frozen=True)
class Picture:
    """Panels that stand beside each other where there is room, and below each other on a phone."""

    panels: tuple[Markup, ...]
    caption: str
    size: str
    """Width of a panel: half or third."""


@dataclass(frozen=True)
class Section:
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: tuple[str, ...] = ()
    """Lines on files that are not there and the stages that make them."""


Panels = Sequence[tuple[str, Figure]]
"""(alternative text, figure) of each panel."""


def _picture(files: Results, name: str, whole: Figure | None, panels: Panels, *, caption: str, size: str) -> Picture:
    if whole is not None:
        style.save(whole, files.plots / f"{name}.png")
    drawn = [Markup(inline(panel, name=f"{name}{place}", alt=alt)) for place, (alt, panel) in enumerate(panels)]
    return Picture(tuple(drawn), caption, size)


def sections(files: Results, config: Mapping[str, Any], base: Mapping[str, Any]) -> list[Section]:
    """Every section for which there are results, and those without results whose stages are part of every run."""
    perplexity = tables.with_trained_baselines(ResultTable.from_rows(files.rows("plots/perplexity.csv", "evaluate")))
    original = int(base.get("original_length") or setting(config, "model.original_length") or 1)
    makers: Sequence[Callable[[], Section | None]] = (
        lambda: _perplexity(files, perplexity, original),
        lambda: _passkey(files),
        lambda: _needles(files),
        lambda: _factors(files, config, base),
        lambda: _search(files, config, perplexity),
        lambda: _training(files, config, original),
        lambda: _benchmarks(files),
        lambda: _retrieval(files),
        lambda: _export(files),
        lambda: _data(files),
    )
    made = [(make(), files.noted()) for make in makers]
    return [replace(section, missing=missing) for section, missing in made if section is not None]


def _perplexity(files: Results, table: ResultTable, original: int) -> Section:
    pictures: tuple[Picture, ...] = ()
    panels = []
    for model, title in style.MODELS.items():
        if len(table.where(model=model)):
            shown = table.where(model=(model, "control") if model == "finetuned" else model)
            alt = f"Perplexity against input length, {title}, one line per method"
            panels.append((alt, plots.perplexity(shown, original_length=original, width=HALF)))
    if panels:
        caption = "Each baseline in its best case. Filled and open marks are of different documents and do not compare."
        if any(plots.is_number(row.get("low")) for row in table.rows()):
            caption += " Bands are 95 % intervals by bootstrap over documents."
        whole = plots.perplexity(table, original_length=original)
        pictures = (_picture(files, "perplexity", whole, panels, caption=caption, size="half"),)
    tuned = ", and on the fine-tuned model either in place of our factors or on top of them"
    sentences = [
        "A baseline gets its best case: the scale for each length or for the target"
        f"{tuned if len(table.where(model='finetuned')) else ''}. The small print in a cell says which it was. "
        "The lowest is set in bold."
    ]
    shown_tables = tables.perplexity_tables(table)
    if len(comparisons := files.table("paired")):
        shown_tables.append(scores.paired_table(comparisons))
    if on_key_tokens := tables.key_token_tables(table):
        sentences.append(
            "Perplexity is nearly all local. Key tokens are those that the text beyond the window makes much likelier, "
            "as LongPPL defines them: read in windows of the original length their loss is more than 2 nats higher "
            "than with all the text before them, where it is below 2. One reader chooses them for every method: the "
            "fine-tuned model or, where nothing was trained, the base model under YaRN."
        )
        shown_tables += on_key_tokens
    if len(gains := files.table("far_context")):
        shown_tables.append(tables.far_context_table(gains))
    return Section("Perplexity", tuple(sentences) if len(table) else (), tuple(shown_tables), pictures)


def _passkey(files: Results) -> Section:
    table = ResultTable.from_rows(files.rows("plots/passkey.csv", "evaluate"))
    if not len(table):
        return Section("Passkey")
    caption = (
        "Accuracy in per cent by input length and depth of the key (0 % is the start; its place is drawn within a "
        "band around that depth), both forms together; trials in brackets."
    )
    panels = [
        (
            f"Passkey accuracy, {style.MODELS.get(model, model)}, {style.style(method)[0]}",
            heatmaps.passkey(table, only=(model, method), width=THIRD),
        )
        for model, method in heatmaps.passkey_panels(table)
    ]
    picture = _picture(files, "passkey", heatmaps.passkey(table), panels, caption=caption, size="third")
    return Section("Passkey", (), (tables.passkey_table(table), tables.depth_table(table)), (picture,))


def _factors(files: Results, config: Mapping[str, Any], base: Mapping[str, Any]) -> Section:
    recovered = files.json("factors/recovered.json", "recover")
    rows = files.rows("plots/factors.csv", "evaluate")
    pictures: tuple[Picture, ...] = ()
    if rows:
        marks: dict[str, Any] = {}
        caption = "A factor of 1 leaves a pair as it was; s, the extension ratio, is full interpolation."
        if {"rotary_dim", "rope_theta", "original_length"} <= set(base):
            dimension, theta = int(base["rotary_dim"]), float(base["rope_theta"])
            critical = critical_pair(rotary_dim=dimension, base=theta, original_length=int(base["original_length"]))
            marks = {"frequencies": inverse_frequencies(dimension, theta), "critical": critical}
            caption += (
                f" The critical dimension is {2 * critical}, pair {critical}: pairs from there on (to its right) "
                "do not turn once within the training window, so longer inputs show them angles that they never met."
            )
        ours = [row for row in rows if str(row["factors_of"]).startswith("ours")]
        published = [row for row in rows if row not in ours]
        by_length = plots.factors(ours or rows, **marks, width=HALF)
        panels = [("Our rescale factors by frequency, one line per input length", by_length)]
        if ours and published:
            # The published factors are for the first target.
            of_lengths = style.groups(ours, lambda row: row["factors_of"])
            name = f"ours, up to {setting(config, 'extension.target') or 0:,}"
            first = of_lengths.get(name) or list(of_lengths.values())[-1]
            beside = plots.factors([*first, *published], **marks, width=HALF)
            panels.append(("Our rescale factors for the first target beside the published methods'", beside))
        pictures = (_picture(files, "factors", plots.factors(rows, **marks), panels, caption=caption, size="half"),)
    shown = (tables.scaling_table(recovered["switch"]),) if recovered else ()
    if not (scales := files.query_scales()):
        return Section("Rescale factors", (), shown, pictures)
    sentence = query_scales_sentence(scales, trained=is_trained(config))
    caption = "What the queries are multiplied by. A larger scale lets a head attend to fewer tokens."
    panels = [("Query scales by layer and head", heatmaps.query_scales(scales, width=HALF))]
    # No PNG, since DVC wants a declared one of every run.
    picture = _picture(files, "query_scales", None, panels, caption=caption, size="half")
    return Section("Rescale factors", (sentence,), shown, (*pictures, picture))


def _search(files: Results, config: Mapping[str, Any], perplexity: ResultTable) -> Section:
    runs: dict[str, list[Row]] = {}
    sentences, panels = [], []
    for stage, title in searches(config).items():
        if not (rows := files.rows(f"plots/{stage}.csv", stage)):
            continue
        runs[title] = rows
        measured = files.json(f"metrics/{stage}.json", stage) or {}
        for length, length_rows in style.groups(rows, lambda row: int(row["length"])).items():
            sentences.append(f"{title}. {search_sentence(length, length_rows, measured.get(f'at_{length}', {}))}")
            alt = f"{title} at {length:,} tokens: best perplexity over tokens paid"
            panels.append((alt, plots.search({title: length_rows}, width=THIRD)))
    if gain := evolution_sentence(perplexity):
        sentences.append(gain)
    if not runs:
        return Section("Search and its cost")
    caption = (
        "Dots are trials or steps, lines the best trial so far, bars end a generation; the worst trials lie above the "
        "panels. A gradient step reads rows of its own, so that one step's figure does not compare with another's. A "
        "backward pass counts as two forward passes."
    )
    picture = _picture(files, "search", plots.search(runs), panels, caption=caption, size="third")
    cost = tables.cost_table(files.metrics(), config)
    return Section("Search and its cost", tuple(sentences), (cost,) if cost else (), (picture,))


def _training(files: Results, config: Mapping[str, Any], original: int) -> Section | None:
    if not is_trained(config):
        # DVC wants the picture of every run.
        style.save(plots.no_training(), files.plots / "training.png")
        return None
    runs: dict[str, list[Row]] = {}
    body = []
    for name, stage, title, length in (
        ("finetune_first", "finetune_first", "first part", setting(config, "finetune.first.length")),
        ("finetune_second", "finetune_second", "second part", setting(config, "finetune.second.length")),
        ("control", "finetune_second", "control", original if original > 1 else None),
    ):
        if not (rows := files.rows(f"plots/{name}.csv", stage)):
            continue
        label = title + (f", {length:,} tokens" if length else "")
        runs[label] = rows
        speed = sorted(float(row["tokens_per_second"]) for row in rows)[len(rows) // 2]
        memory = max(float(row["peak_mib"]) for row in rows)
        final = [float(row["loss"]) for row in rows][-max(len(rows) // 10, 1) :]
        loss = f"{sum(final) / len(final):.3f}"
        body.append((label, f"{int(rows[-1]['step']):,}", loss, f"{speed:,.0f}", f"{memory:,.0f}"))
    if not runs:
        return Section("Fine-tuning")
    header = ("", "last step", "loss, nats (mean of the last tenth)", "tokens per second (median)", "peak memory, MiB")
    caption = (
        "Thin: every step. Thick: running mean over a tenth of the run. Losses at different lengths are on other rows."
    )
    panels = [(f"Training loss by step, {title}", plots.training(runs, only=[title], width=THIRD)) for title in runs]
    picture = _picture(files, "training", plots.training(runs), panels, caption=caption, size="third")
    return Section("Fine-tuning", (), (tables.table("Training", header, body),), (picture,))


def _needles(files: Results) -> Section | None:
    table = files.table("needles")
    return Section("Needles", (), (scores.needle_table(table),)) if len(table) else None


def _benchmarks(files: Results) -> Section | None:
    rows = files.optional_rows("plots/benchmarks.csv")
    return Section("Benchmarks before and after", (), (scores.benchmark_table(rows),)) if rows else None


def _retrieval(files: Results) -> Section | None:
    rows = files.optional_rows("plots/retrieval.csv")
    if not rows:
        return None
    tuned = any(row["model"] == "finetuned" for row in rows)
    reader = "fine-tuned model" if tuned else "base model under our factors"
    sentences = (
        f"The same prompts, answered by the {reader} from the whole document, and by the base model from what "
        "BM25 finds of it within the old window: the share of the answers in what it writes and, where there are wrong "
        "answers to compare with, how often the right one is the likeliest.",
    )
    alt = "Right answers by length of the document, for each way of reading it"
    panels = [
        (f"{alt}, {family_name(task)}", scores.retrieval(task_rows, width=HALF))
        for task, task_rows in style.groups(rows, lambda row: str(row["task"])).items()
    ]
    # No PNG, since DVC wants a declared one of every run.
    picture = _picture(files, "retrieval", None, panels, caption=f"{alt}.", size="half")
    return Section("Retrieval or long context?", sentences, (scores.retrieval_table(rows),), (picture,))


def _export(files: Results) -> Section:
    rows = files.rows("plots/export.csv", "export")
    if not rows:
        return Section("Export")
    sentences = (
        "What other software loses on the exported checkpoint: it knows no n_hat, and applies one attention factor and "
        "one set of factors (short_factor=same) or two (short_factor=recovered) in place of a scaling by input length.",
    )
    return Section("Export", sentences, (tables.export_table(rows),), ())


def _data(files: Results) -> Section:
    card = files.json("tokens/card.json", "prepare")
    if card is None:
        return Section("Data card")
    return Section("Data card", tuple(data_sentences(card)), tuple(tables.data_tables(card)), ())
