"""Extend the window of one model on one folder of texts, every stage in this process; no weight changes.

python pipelines/extend.py model.path=../my-model corpus.path=../texts extension.target=32768
python pipelines/extend.py model.path=../my-model corpus.path=../texts -m extension.factor=2,4 search=fast,hybrid

The same command resumes where an earlier one was interrupted.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

from ropewalk.app import app
from ropewalk.chain import Job, is_whole, jobs_text, run_chain
from ropewalk.config import Config
from ropewalk.files import locked, read_json, write_text
from ropewalk.stage import Stage, tracked

SECTIONS = ("corpus", "model", "extension", "search", "evaluate", "export", "rope")
FOLDERS = ("output=outputs/extend", "hydra.run.dir=.", "hydra.sweep.dir=outputs/extend", "hydra.sweep.subdir=.")
"""A job of a sweep has the folder that it would have alone, so that it resumes as well."""
JOBS = list[Job]()


def work(name: str, stage: Stage) -> None:
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))[name](stage)


def extend(config: Config) -> None:
    # Imported late, because they take seconds and a mistake in the configuration is told at once.
    from ropewalk import tracking
    from ropewalk.evaluate.summary import print_summary
    from ropewalk.preflight import preflight

    for warning in preflight(config):
        print(f"extend: warning: {warning}", file=sys.stderr)
    stage = Stage.of("extend", config, sections=SECTIONS)
    model = Path(config.model.path).resolve().name if config.model.name == "hf" else config.model.name
    folder = Path(config.output) / f"{model}-{config.extension.target}-{stage.config_hash}"
    print(f"{model} to {config.extension.target:,} tokens: {folder}", flush=True)
    overrides = [text for text in HydraConfig.get().overrides.task if not text.startswith("output=")]
    write_text(folder / "overrides.yaml", yaml.safe_dump({"overrides": overrides}, width=1000))
    config = replace(config, output=str(folder), inputs=str(folder), work=str(folder / "work"))
    if not is_whole(config):
        with locked(folder / "work", "extension"), tracked(replace(stage, config=config)):
            run_chain(config, work)
            tracking.log_metrics(read_json(folder / "metrics" / "report.json"))
    print_summary(folder)
    JOBS.append(Job(frozenset(overrides), folder))


if __name__ == "__main__":
    app("extend", extend, overrides=("extension=untrained", *FOLDERS))
    if len(JOBS) > 1:
        print(f"\n{jobs_text(JOBS)}")
