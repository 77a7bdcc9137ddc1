"""The short table that a run ends with: perplexity by length and method, passkey accuracy, checks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropewalk.evaluate.compare import best_case
from ropewalk.evaluate.passkey import accuracy
from ropewalk.files import read_json, read_table

ROWS = (
    ("plain RoPE", "none"),
    ("PI", "pi"),
    ("NTK-aware", "ntk"),
    ("dynamic NTK", "dynamic_ntk"),
    ("ABF", "abf"),
    ("YaRN", "yarn"),
    ("ours", "ours"),
)


def summary(
    rows: Sequence[dict[str, Any]], passkey_rows: Sequence[dict[str, Any]], checks: Sequence[dict[str, Any]]
) -> str:
    """Plain text, at most 100 columns."""
    lines = []
    for model, title in (
        ("base", "Perplexity by length, base model as it is (a baseline in its best case)"),
        ("finetuned", "Perplexity by length, fine-tuned model"),
    ):
        lengths = sorted({row["length"] for row in rows if row["model"] == model})
        lines += [title, " " * 12 + "".join(f"{length:>10,}" for length in lengths)]
        for name, method in ROWS:
            cells = []
            for length in lengths:
                # Ours is also read on the long documents alone; a column must hold one set of documents.
                sets = {row["document_set"] for row in rows if (row["model"], row["length"]) == (model, length)}
                documents = "all" if "all" in sets else "long"
                try:
                    best = best_case(rows, model=model, method=method, length=length, document_set=documents)
                    cells.append(f"{best:>10.3f}" if math.isfinite(best) else f"{'NaN':>10}")
                except KeyError:
                    cells.append(f"{'':>10}")
            lines.append(f"{name:<12}" + "".join(cells))
        lines.append("")
    own = [row for row in passkey_rows if (row["model"], row["method"]) == ("finetuned", "ours")]
    lengths = sorted({row["length"] for row in own})
    lines += ["Passkey accuracy, fine-tuned model", " " * 12 + "".join(f"{length:>10,}" for length in lengths)]
    shares = [accuracy([row for row in own if row["length"] == length]) for length in lengths]
    lines += [f"{'ours':<12}" + "".join(f"{share:>10.0%}" for share in shares), ""]
    failed = [check for check in checks if not check["passed"]]
    lines.append(f"{len(checks) - len(failed)} of {len(checks)} checks passed" + (":" if failed else ""))
    lines += [f"  not met: {c['claim']}: {c['measured']:.4g}, limit {c['limit']:.4g}" for c in failed]
    return "\n".join(lines)


def main() -> None:
    results = Path("results")
    rows, passkeys = (read_table(results / "plots" / f"{name}.csv") for name in ("perplexity", "passkey"))
    print(summary(rows, passkeys, read_json(results / "checks.json")))
    print(f"\nReport: {(results / 'report.html').resolve()}")
    print("Model:  results/model (transformers checkpoint)")
    print("Runs:   make ui, then http://127.0.0.1:5000")


if __name__ == "__main__":
    main()
