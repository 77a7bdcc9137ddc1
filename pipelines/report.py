"""Stage report: the plots and one HTML page that says what was run and what came out."""

from ropewalk import tracking
from ropewalk.report.page import write_report
from ropewalk.stage import Stage, run

SECTIONS = ("corpus", "model", "road", "search", "finetune", "evaluate", "rope")


def report(stage: Stage) -> None:
    out = stage.output / "report.html"
    write_report(stage.inputs, config=stage.values(*SECTIONS), out=out)
    tracking.log_file(out)
    for plot in sorted((stage.output / "plots").glob("*.png")):
        tracking.log_file(plot)


if __name__ == "__main__":
    run("report", report, sections=SECTIONS, inputs=("base.json", "metrics", "plots", "factors", "checks.json"))
