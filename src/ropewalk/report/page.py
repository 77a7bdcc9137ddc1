"""One self-contained HTML page on a run, and its plots as PNG, from the files that the stages wrote."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from ropewalk.files import read_json, read_table, write_text
from ropewalk.report import plots, style, tables
from ropewalk.report.tables import Table


@dataclass(frozen=True)
class Picture:
    source: str
    """data: URI."""
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: tuple[str, ...] = ()
    """Lines on files that are not there and the stages that make them."""


class _Results:
    """The files below one folder; those that are not there are noted with the stage that makes them."""

    def __init__(self, folder: Path, plots: Path) -> None:
        self.folder = folder
        self.plots = plots
        self.missing: list[str] = []

    def rows(self, name: str, stage: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.is_file():
            self._note(name, stage)
            return []
        rows = read_table(path)
        if not rows:
            self._note(name, stage, "has no rows")
        return rows

    def json(self, name: str, stage: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            self._note(name, stage)
            return None
        return read_json(path)

    def _note(self, name: str, stage: str, what: str = "is not there") -> None:
        self.missing.append(f"{name} {what}; stage {stage} makes it (dvc repro {stage}).")

    def noted(self) -> tuple[str, ...]:
        """Notes since the last call."""
        notes, self.missing = tuple(self.missing), []
        return notes

    def picture(self, name: str, figure: Figure, alt: str, caption: str) -> Picture:
        path = self.plots / f"{name}.png"
        style.save(figure, path)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        return Picture(f"data:image/png;base64,{data}", alt, caption)


def write_report(results: Path, *, config: Mapping[str, Any], out: Path) -> None:
    """Write the page to ``out`` and its plots as PNG to the folder plots beside it, from the files below ``results``.

    Args:
        config: the whole configuration as plain values; what it lacks is left out of the text.

    Raises:
        ValueError: a file is not what its stage writes; names it.
    """
    files = _Results(results, out.parent / "plots")
    base = files.json("base.json", "base") or {}
    base_notes = files.noted()
    checks = files.json("checks.json", "evaluate")
    check_notes = files.noted()
    original = int(base.get("original_length") or tables.setting(config, "model.original_length") or 1)
    perplexity = files.rows("plots/perplexity.csv", "evaluate")
    makers: Sequence[Callable[[], Section]] = (
        lambda: _perplexity(files, perplexity, original),
        lambda: _search(files, perplexity),
        lambda: _factors(files),
        lambda: _training(files, config, original),
        lambda: _passkey(files),
        lambda: _export(files),
    )
    sections = [make() for make in makers]
    target = tables.setting(config, "road.second_target")
    html = _template().render(
        title=f"{base.get('name') or tables.setting(config, 'model.name') or 'A model'}: a longer context window",
        span=f"from {original:,} to {target:,} tokens" if target and original > 1 else "",
        what=Section("What was run", tuple(tables.run_sentences(config, base)), missing=base_notes),
        checks=checks,
        passed=sum(bool(check["passed"]) for check in checks or ()),
        outcome=tables.comparison_sentences(perplexity),
        check_notes=check_notes,
        sections=sections,
        configuration=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        numbers=_numbers(results),
    )
    write_text(out, html)


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(package_files("ropewalk.report").joinpath("template.html").read_text("utf-8"))


def _numbers(results: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """(stage, its metrics under dotted names) of every metrics/*.json."""
    return [(path.stem, _flat(read_json(path))) for path in sorted((results / "metrics").glob("*.json"))]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(values, Mapping):
        return [(prefix, f"{values:.6g}" if isinstance(values, float) else str(values))]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def _perplexity(files: _Results, rows: list[dict[str, Any]], original: int) -> Section:
    pictures: tuple[Picture, ...] = ()
    if any(row["model"] in style.MODELS for row in rows):
        pictures = (
            files.picture(
                "perplexity", plots.perplexity(rows, original_length=original),
                "Perplexity against input length, one line per method",
                "Each baseline in its best case. Filled and open marks are of different documents and do not compare.",
            ),
        )  # fmt: skip
    sentences = (
        "A baseline gets its best case: the scale for each length or for the target, and on the fine-tuned model "
        "either in place of our factors or on top of them. The small print in a cell says which it was. "
        "The lowest is set in bold.",
    )
    found = tuple(tables.perplexity_tables(rows))
    return Section("Perplexity", sentences if rows else (), found, pictures, files.noted())


def _search(files: _Results, perplexity: list[dict[str, Any]]) -> Section:
    names = {"search_first": "First search", "search_second": "Second search", "recover": "Recovery"}
    runs = {}
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
        return Section("Search", missing=files.noted())
    caption = (
        "Dots are trials or steps, lines the best so far, bars end a generation; the worst trials lie above the "
        "panels. A gradient step reads only some of the documents. A backward pass counts as two forward passes."
    )
    picture = files.picture("search", plots.search(runs), "Best perplexity over tokens paid in each search", caption)
    return Section("Search", tuple(sentences), (), (picture,), files.noted())


def _factors(files: _Results) -> Section:
    recovered = files.json("factors/recovered.json", "recover")
    rows = files.rows("plots/factors.csv", "evaluate")
    pictures: tuple[Picture, ...] = ()
    if rows:
        caption = "A factor of 1 leaves a pair as it was; s, the extension ratio, is full interpolation."
        pictures = (files.picture("factors", plots.factors(rows), "Rescale factors by dimension pair", caption),)
    found = (tables.scaling_table(recovered["switch"]),) if recovered else ()
    return Section("Rescale factors", (), found, pictures, files.noted())


def _training(files: _Results, config: Mapping[str, Any], original: int) -> Section:
    names = {"finetune_first": "first part", "finetune_second": "second part", "control": "control"}
    lengths = {
        "finetune_first": tables.setting(config, "finetune.first.length"),
        "finetune_second": tables.setting(config, "finetune.second.length"),
        "control": original if original > 1 else None,
    }
    runs: dict[str, list[dict[str, Any]]] = {}
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
    picture = files.picture("training", plots.training(runs), "Training loss by step", caption)
    return Section("Fine-tuning", (), (tables.table("Training", header, body),), (picture,), files.noted())


def _passkey(files: _Results) -> Section:
    rows = files.rows("plots/passkey.csv", "evaluate")
    if not rows:
        return Section("Passkey", missing=files.noted())
    caption = "Accuracy in per cent by input length and depth of the key; trials per length in brackets."
    picture = files.picture("passkey", plots.passkey(rows), "Passkey accuracy by length and depth", caption)
    return Section("Passkey", (), (tables.passkey_table(rows),), (picture,), files.noted())


def _export(files: _Results) -> Section:
    rows = files.rows("plots/export.csv", "export")
    if not rows:
        return Section("Export", missing=files.noted())
    sentences = (
        "What other software loses on the exported checkpoint: it knows no n_hat, and applies one attention factor and "
        "one set of factors (short_factor=same) or two (short_factor=recovered) in place of a scaling by input length.",
    )
    return Section("Export", sentences, (tables.export_table(rows),), (), files.noted())
