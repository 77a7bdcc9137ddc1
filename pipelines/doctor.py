"""Tell whether a runtime really applies the scaling of a checkpoint (doctor.model), or silently drops it.

It ends with code 0 where the scaling is applied, 1 where it is not, and 2 where the text does not tell.

python pipelines/doctor.py doctor.model=results/model
python pipelines/doctor.py doctor.model=model.gguf doctor.reference=../my-model doctor.text=novel.txt
"""

import sys

from ropewalk import tracking
from ropewalk.doctor.examine import examine
from ropewalk.doctor.figure import diagnosis_figure
from ropewalk.files import write_table
from ropewalk.report.style import save
from ropewalk.stage import Stage, run


def doctor(stage: Stage) -> int:
    diagnoses = examine(stage.config.doctor, **stage.config.model.trust)
    folder = stage.output
    write_table(folder / "doctor.csv", [row for diagnosis in diagnoses for row in diagnosis.rows()])
    save(diagnosis_figure(diagnoses), folder / "doctor.png")
    for name in ("doctor.csv", "doctor.png"):
        tracking.log_file(folder / name)
    stage.write_metrics({diagnosis.runtime: diagnosis.metrics() for diagnosis in diagnoses})
    print(f"table and plot: {folder}\n")
    print("\n\n".join(diagnosis.text() for diagnosis in diagnoses))
    return max(diagnosis.verdict.exit_code for diagnosis in diagnoses)


if __name__ == "__main__":
    codes: list[int] = []
    run("doctor", lambda stage: codes.append(doctor(stage)), sections=("doctor",), whole=False)
    if any(codes):
        sys.exit(max(codes))
