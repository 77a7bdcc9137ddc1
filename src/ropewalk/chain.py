"""The stages of dvc.yaml one after another in one process, for those who run them without DVC."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from ropewalk.composition import ROOT
from ropewalk.config import Config
from ropewalk.files import read_json, write_text
from ropewalk.stage import Stage, run_stage
from ropewalk.ways import is_left_out, leave_out

_RESULTS = "results/"


@dataclass(frozen=True)
class Link:
    """A stage as dvc.yaml declares it; paths are below the folder of results."""

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def declared(cls, name: str, stage: dict[str, Any]) -> "Link":
        (params,) = (entry["resolved.yaml"] for entry in stage["params"] if "resolved.yaml" in entry)
        # Without the seed, which every stage reads, and the way, which decides whether a stage has work to do.
        sections = tuple(key for key in params if key != "seed" and "." not in key)
        outputs = [*stage["outs"], *stage.get("metrics", [])]
        return cls(name, sections, _below_results(stage["deps"]), _below_results(outputs))


def _below_results(paths: list[str]) -> tuple[str, ...]:
    return tuple(path.removeprefix(_RESULTS) for path in paths if path.startswith(_RESULTS))


@cache
def chain() -> tuple[Link, ...]:
    """Every stage of dvc.yaml after compose, in order."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return tuple(Link.declared(name, stage) for name, stage in stages.items() if name != "compose")


def working_links(config: Config) -> list[Link]:
    """The stages that the way of extending does not leave out."""
    return [link for link in chain() if not is_left_out(link.name, config.extension.way)]


def is_done(link: Link, config: Config) -> bool:
    """Whether the stage's results are complete, and made under this configuration from the present inputs."""
    folder = Path(config.output)
    if not all((folder / name).exists() for name in (*link.inputs, *link.outputs)):
        return False
    note = _note(link, config)
    return note.is_file() and note.read_text() == _key(link, config)


def run_chain(config: Config, work: Callable[[str, Stage], None]) -> None:
    """Run every stage that is not done, with its results below ``config.output``, and say which one is at work.

    Args:
        work: does the work of a stage, given its name and the stage.

    Raises:
        ValueError, OSError, MemoryError: a stage's own errors. What was done before stays done.
    """
    working = [link.name for link in working_links(config)]
    for link in chain():
        if link.name not in working:
            leave_out(link.name, inputs=Path(config.inputs), output=Path(config.output))
            continue
        done = is_done(link, config)
        print(f"[{working.index(link.name) + 1}/{len(working)}] {link.name}{', done before' * done}", flush=True)
        if not done:
            _note(link, config).unlink(missing_ok=True)
            run_stage(link.name, partial(work, link.name), config, sections=link.sections, inputs=link.inputs)
            write_text(_note(link, config), _key(link, config))


def is_whole(config: Config) -> bool:
    """Whether every stage that has work to do is done."""
    return all(is_done(link, config) for link in working_links(config))


@dataclass(frozen=True)
class Job:
    """One of several chains that a sweep ran."""

    overrides: frozenset[str]
    folder: Path
    """Folder of its results."""


def jobs_text(jobs: Sequence[Job]) -> str:
    """A table of jobs, one per line: the overrides in which it differs from the others, its figures, and its folder."""
    shared = frozenset.intersection(*(job.overrides for job in jobs))
    figures = [read_json(job.folder / "metrics" / "report.json") for job in jobs]
    names = list(dict.fromkeys(name for values in figures for name in values))
    rows = [["", *(name.replace("_", " ") for name in names), "folder"]]
    for job, values in zip(jobs, figures, strict=True):
        cells = [_number(values[name]) if name in values else "" for name in names]
        rows.append([" ".join(sorted(job.overrides - shared)), *cells, str(job.folder)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _note(link: Link, config: Config) -> Path:
    """File with the key of the stage's last whole results."""
    return Path(config.work) / link.name / "done"


def _key(link: Link, config: Config) -> str:
    return Stage.of(link.name, config, sections=link.sections, inputs=link.inputs).key
