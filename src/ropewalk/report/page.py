"""One self-contained HTML page on a run, and its plots as PNG, from the files that the stages wrote."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from platform import python_version
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.files import write_text
from ropewalk.report import heatmaps, plots, style
from ropewalk.report.answer import answer
from ropewalk.report.results import Results, setting
from ropewalk.report.sections import sections
from ropewalk.report.sentences import comparison_sentences, run_sentences
from ropewalk.report.svg import colour_rules

_PACKAGES = ("torch", "transformers", "lightning", "optuna", "hydra-core", "dvc", "mlflow")
"""The software that the figures depend on."""


@dataclass(frozen=True)
class Origin:
    """What is needed to repeat a run, beside its configuration."""

    commit: str = "unknown"
    overrides: tuple[str, ...] = ()
    """The overrides in overrides.yaml."""
    script: str | None = None
    """The script of a run without DVC, which takes the overrides as its arguments."""


def write_report(results: Path, *, config: Mapping[str, Any], out: Path, origin: Origin | None = None) -> None:
    """Write the page to ``out`` and its plots as PNG to the folder plots beside it, from the files below ``results``.

    Args:
        config: the whole configuration as plain values; what it lacks is left out of the text.

    Raises:
        ValueError: a file is not what its stage writes; the message names it.
    """
    files = Results(results, out.parent / "plots")
    base = files.json("base.json", "base") or {}
    base_notes = files.noted()
    checks = files.json("checks.json", "evaluate")
    verdict = files.json("verdict.json", "evaluate") or {}
    check_notes = files.noted()
    original = int(base.get("window") or base.get("original_length") or setting(config, "model.original_length") or 1)
    name = str(base.get("name") or setting(config, "model.name") or "a model")
    target = setting(config, "extension.second_target")
    perplexity = files.table("perplexity")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = package_files("ropewalk.report").joinpath("template.html").read_text("utf-8")
    html = environment.from_string(template).render(
        title=f"{name[:1].upper()}{name[1:]}: a longer context window",
        span=f"from {original:,} to {target:,} tokens" if target and original > 1 else "",
        light=colour_rules(dark=False),
        dark=colour_rules(dark=True),
        answer=answer(name, perplexity, verdict, checks or (), window=original, target=target),
        run=run_sentences(config, base),
        base_notes=base_notes,
        checks=checks,
        passed=sum(bool(check["passed"]) for check in checks or ()),
        outcome=comparison_sentences(perplexity),
        check_notes=check_notes,
        sections=sections(files, config, base),
        configuration=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        origin=origin,
        overrides=yaml.safe_dump({"overrides": list(origin.overrides)}, width=1000) if origin else "",
        command=shlex.join(("python", origin.script, *origin.overrides)) if origin and origin.script else "",
        versions=", ".join([f"Python {python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]),
        numbers=[(stage, _flat(values)) for stage, values in files.metrics().items()],
    )
    write_text(out, html)


def _flat(values: Any, prefix: str = "") -> Sequence[tuple[str, str]]:
    """A stage's metrics under dotted names."""
    if not isinstance(values, Mapping):
        return [(prefix, f"{values:.6g}" if isinstance(values, float) else str(values))]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def card_pictures(
    perplexity: ResultTable, passkey: ResultTable, *, original_length: int, folder: Path
) -> dict[Path, str]:
    """Write PNG files to ``folder``; returns what each shows, and leaves out what was not measured."""
    pictures = {}
    if len(perplexity.where(model=tuple(style.MODELS))):
        path = folder / "perplexity.png"
        style.save(plots.perplexity(perplexity, original_length=original_length), path)
        pictures[path] = "Perplexity against input length, one line per method"
    if len(passkey):
        path = folder / "passkey.png"
        style.save(heatmaps.passkey(passkey), path)
        pictures[path] = "Passkey accuracy by length and depth"
    return pictures
