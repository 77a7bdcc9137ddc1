"""The frame of every benchmark's results.json: machine, versions, commit and date around the rows."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropewalk.files import write_json

PACKAGES = ("torch", "transformers", "lightning", "optuna", "dvc", "mlflow", "hydra-core")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        path,
        {
            "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "commit": commit,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rows": list(rows),
        },
    )
