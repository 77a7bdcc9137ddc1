"""Which weights of the joint fitness: perplexity against retrieval, on documents that no search and no test reads.

    python benchmarks/search/weights.py

The model is the walker at a target of 2,048 tokens, under the gradient alone with a query scale per head and pair. The
documents of the search split are divided: eight are searched on, and the others, with needles in wordings that no
search uses, decide between the weights of answers and of copied tokens. A row is a pair of weights and a seed;
rows that are there are not measured again. The figures are those of `retrieval.py`. `--table` prints the means.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from retrieval import JOINT, SEARCHES, RetrievalBench
from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.files import read_json
from ropewalk.rope.methods import yarn
from run import DOCUMENTS, ROOT, WINDOW, WORK, walker_stores

RESULTS = Path(__file__).with_name("weights.json")
TARGET = 2048
WEIGHTS = ((0.2, 0.5), (0.0, 0.0), (0.1, 0.25), (0.05, 0.1), (0.4, 1.0), (0.2, 0.0), (0.0, 0.5))
"""(needle_weight, copied_weight); all tokens have the weight 1."""


def divided(store: TokenStore) -> tuple[TokenStore, TokenStore]:
    """The first eight documents of a store that are long enough, and the others."""
    indices = store.long_documents(TARGET - 1).tolist()
    parts = []
    for name, chosen in (("search", indices[:DOCUMENTS]), ("validation", indices[DOCUMENTS:])):
        folder = WORK / "walker-weights" / name
        if not (folder / "store.json").is_file():
            documents = [
                (Document(store.names[index], "text", "", store.names[index]), store.document(index).tolist())
                for index in chosen
            ]
            write_store(folder, documents, bos=store.bos, eos=store.eos, vocab_size=2**16)
        parts.append(TokenStore(folder))
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the means over seeds, and stop")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.is_file() else []

    def add(name: str, seed: int, values: dict[str, Any]) -> None:
        rows.append({"name": name, "seed": seed, **values})
        write_results(options.results, rows)
        print(rows[-1], flush=True)

    if not options.table:
        torch.set_num_threads(1)
        bench = RetrievalBench("walker", str(ROOT / "models/walker"), *divided(walker_stores()[0]), TARGET)
        done = {(row["name"], row["seed"]) for row in rows}
        if ("YaRN", 0) not in done:
            published = yarn(
                rotary_dim=bench.shape.rotary_dim, base=bench.shape.base, original_length=WINDOW, target_length=TARGET
            )  # fmt: skip
            add("YaRN", 0, bench.measured(published))
        for seed in options.seeds:
            for needles, copied in WEIGHTS:
                name = f"answers {needles:g}, copied {copied:g}"
                if (name, seed) not in done:
                    SEARCHES[name] = replace(JOINT, needle_weight=needles, copied_weight=copied), "pair", None
                    add(name, seed, bench.measured(bench.learned(name, seed)[0]))
    means = pd.DataFrame(rows).drop(columns=["seed"]).groupby("name", sort=False).mean()
    print(means.to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
