"""Stage report: the plots and one HTML page that says what was run and what came out."""

from pathlib import Path

from ropewalk import tracking
from ropewalk.composition import read_overrides
from ropewalk.report.page import Origin, write_report
from ropewalk.stage import Stage, run

SECTIONS = ("corpus", "model", "road", "search", "finetune", "evaluate", "export", "rope")


def report(stage: Stage) -> None:
    out = stage.output / "report.html"
    # Of the project that it runs in, which need not be the one that the package was installed from.
    own = Path("overrides.yaml")
    origin = Origin(tracking.commit_of(), tuple(read_overrides(own)) if own.is_file() else ())
    write_report(stage.inputs, config=stage.values(*SECTIONS, "seed"), out=out, origin=origin)
    tracking.log_file(out)
    for plot in sorted((stage.output / "plots").glob("*.png")):
        tracking.log_file(plot)


if __name__ == "__main__":
    needed = ("base.json", "metrics", "plots", "factors", "checks.json", "tokens/card.json")
    run("report", report, sections=SECTIONS, inputs=needed)
