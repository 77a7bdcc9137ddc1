"""One search, every length: perplexity of a base model between its window and four times the target of a search.

    python benchmarks/search/any_length.py results outputs/extend/NAME

Each argument is the folder of a finished run, whose first factors, base model and test documents are read. A row is a
length and a scaling: the factors as they were searched for the target, the same factors interpolated for the length
(`ropewalk.rope.length_switch`), YaRN for the length, and YaRN for the target. All are read on the same documents, which
no search reads. `--table` prints the rows that are there.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.perplexity import DocumentSet, perplexities
from ropewalk.files import read_json
from ropewalk.models.base import BaseModel, load_model
from ropewalk.rope import methods

RESULTS = Path(__file__).with_name("any_length.json")
DOCUMENTS = 4


def measured(results: Path) -> list[dict[str, Any]]:
    base = BaseModel.read(results / "base.json")
    config = EvaluateConfig(name="any_length", lengths=[], base_lengths=[], passkey_lengths=[])
    extension = Extension.read(results, base, config, methods=("longrope",))
    store, model, target = TokenStore(results / "tokens" / "test"), load_model(base.path), extension.first.target_length
    lengths = [extension.window * 2**power for power in range(1, 20) if extension.window * 2**power <= 4 * target]
    documents = DocumentSet.of("test", store, length=lengths[-1], documents=DOCUMENTS)
    yarn = partial(methods.yarn, rotary_dim=base.rotary_dim, base=base.rope_theta, original_length=base.original_length)
    rows = []
    for length in lengths:
        scalings = {
            "ours, as searched for the target": extension.first,
            "ours, interpolated for the length": extension.on_base.for_length(length),
            "YaRN for the length": yarn(target_length=length),
            "YaRN for the target": yarn(target_length=target),
        }
        for name, scaling in scalings.items():
            row = {"model": base.name, "window": extension.window, "target": target, "length": length, "scaling": name}
            rows.append(row | {"perplexity": perplexities(model, scaling, documents, [length])[length]})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--table", action="store_true", help="print the rows that are there")
    options = parser.parse_args()
    rows = read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    for folder in options.results:
        new = measured(folder)
        rows = [row for row in rows if (row["model"], row["target"]) != (new[0]["model"], new[0]["target"])] + new
        write_results(RESULTS, rows)
    if options.table and rows:
        table = pd.DataFrame(rows).pivot_table("perplexity", ["model", "target", "scaling"], "length", sort=False)
        print(table.round(2).to_string())


if __name__ == "__main__":
    main()
