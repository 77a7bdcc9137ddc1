"""Time and memory of every stage of a full demo run (`make bench-demo`); what is there already is run again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results


def run_stage(stage: str) -> dict[str, object]:
    """Seconds and peak memory of the stage's process, as the operating system accounts them."""
    start = time.perf_counter()
    process = subprocess.Popen(["dvc", "repro", "--force", "--single-item", stage])
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident_kib(process.pid))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"the stage {stage} failed with exit code {process.returncode}")
    return {"stage": stage, "seconds": round(time.perf_counter() - start, 1), "peak_mib": round(peak / 1024)}


def _resident_kib(pid: int) -> int:
    """Largest resident memory so far of a process's descendants, in KiB."""
    largest = 0
    for child in _children(pid):
        try:
            status = Path(f"/proc/{child}/status").read_text()
        except OSError:
            continue
        largest = max(largest, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        largest = max(largest, _resident_kib(child))
    return largest


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    os.chdir(Path(__file__).resolve().parents[2])
    # Figures of an earlier evaluation would not be measured again.
    shutil.rmtree("work/measured", ignore_errors=True)
    stages = list(yaml.safe_load(Path("dvc.yaml").read_text())["stages"])
    rows = [run_stage(stage) for stage in stages]
    total = {"stage": "all", "seconds": round(sum(float(str(row["seconds"])) for row in rows), 1)}
    rows.append({**total, "peak_mib": max(int(str(row["peak_mib"])) for row in rows)})
    write_results(Path("benchmarks/demo/results.json"), rows)


if __name__ == "__main__":
    main()
