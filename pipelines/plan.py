"""What a road costs before it is run: tokens, FLOPs, memory and time of each stage, and the setting that makes it fit.

python pipelines/plan.py
python pipelines/plan.py model=hf model.path=../Llama-2-7b-hf plan=h100 parallel=fsdp parallel.devices=8
"""

from ropewalk import tracking
from ropewalk.files import write_table
from ropewalk.plan.table import plan as plan_road
from ropewalk.plan.table import plan_rows, plan_text
from ropewalk.stage import Stage, run


def plan(stage: Stage) -> None:
    found = plan_road(stage.config)
    print(plan_text(found))
    path = stage.output / "plan.csv"
    write_table(path, plan_rows(found))
    tracking.log_file(path)


if __name__ == "__main__":
    sections = ("model", "road", "search", "finetune", "parallel", "evaluate", "plan", "rope")
    run("plan", plan, sections=sections)
