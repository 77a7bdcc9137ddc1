"""Stage report: the plots and one HTML page that says what was run and what came out."""

from pathlib import Path

from ropewalk import tracking
from ropewalk.composition import read_overrides
from ropewalk.models.base import BaseModel
from ropewalk.report.headline import headline
from ropewalk.report.page import Origin, write_report
from ropewalk.report.results import Results
from ropewalk.stage import Stage, run

SECTIONS = ("corpus", "model", "extension", "search", "finetune", "evaluate", "export", "rope")


def report(stage: Stage) -> None:
    out = stage.output / "report.html"
    # Commit and overrides of the project at hand, which need not be the one that the package was installed from; a run
    # without DVC keeps its overrides beside its results.
    files = [path for path in (stage.inputs / "overrides.yaml", Path("overrides.yaml")) if path.is_file()]
    origin = Origin(
        tracking.commit_of(),
        tuple(read_overrides(files[0])) if files else (),
        script="pipelines/extend.py" if files and files[0].parent == stage.inputs else None,
    )
    write_report(stage.inputs, config=stage.values(*SECTIONS, "seed"), out=out, origin=origin)
    results, base = Results(stage.inputs, stage.output / "plots"), BaseModel.read(stage.inputs / "base.json")
    stage.write_metrics(headline(results, window=base.window, target=stage.config.extension.target))
    tracking.log_file(out)
    for plot in sorted((stage.output / "plots").glob("*.png")):
        tracking.log_file(plot)


if __name__ == "__main__":
    needed = ("base.json", "metrics", "plots", "factors", "checks.json", "verdict.json", "tokens/card.json")
    run("report", report, sections=SECTIONS, inputs=needed)
