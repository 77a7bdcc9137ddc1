"""Whether an extension fits on its devices, what makes it fit, and what each stage costs, before anything is run.

python pipelines/plan.py
python pipelines/plan.py model.path=../Mistral-7B-v0.1 extension=trained plan=h100 parallel=fsdp parallel.devices=8
"""

from ropewalk import tracking
from ropewalk.files import write_table
from ropewalk.plan.table import plan as plan_extension
from ropewalk.plan.table import plan_rows, plan_text
from ropewalk.stage import Stage, run


def plan(stage: Stage) -> None:
    planned = plan_extension(stage.config)
    print(plan_text(planned))
    path = stage.output / "plan.csv"
    write_table(path, plan_rows(planned))
    tracking.log_file(path)


if __name__ == "__main__":
    sections = ("model", "extension", "search", "finetune", "parallel", "evaluate", "plan", "rope")
    run("plan", plan, sections=sections)
