"""The metrics of an evaluation, and the short tables that a run prints at its end."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from textwrap import fill
from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.files import read_json
from ropewalk.rope.methods import METHODS, baselines


def metrics(
    perplexity: ResultTable,
    passkey: ResultTable,
    needles: ResultTable,
    benchmark_rows: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Best case of each model, method and length; passkeys by length, needles by family, benchmarks by task.

    A passkey's figure under its length alone is the accuracy in both forms together.
    """
    values: dict[str, Any] = {}

    def section(*names: str) -> dict[str, Any]:
        return reduce(lambda inner, name: inner.setdefault(name, {}), names, values)

    for (model, method, length, documents), group in perplexity.groups("model", "method", "length", "document_set"):
        section("perplexity", model, method)[f"{length}_{documents}"] = float(group.frame["perplexity"].min())
    for (model, method, length), group in passkey.groups("model", "method", "length"):
        figures = section("passkey", model, method)
        figures[str(length)] = group.accuracy()
        figures[f"{length}_likelihood_accuracy"] = group.accuracy("likelihood_accuracy")
        if interval := group.interval():
            figures[f"{length}_low"], figures[f"{length}_high"] = interval
        for (form,), of_form in group.groups("form"):
            figures[f"{length}_{form}"] = of_form.accuracy()
    for row in benchmark_rows:
        section("benchmarks", row["task"])[row["factors"]] = row["score"]
    for (family, model, method, length), group in needles.groups("family", "model", "method", "length"):
        for score in ("accuracy", "likelihood_accuracy"):
            section("needles", family, model, method)[f"{length}_{score}"] = group.accuracy(score)
    return values


_TITLES = {
    "base": "Perplexity by length, base model as it is (a baseline in its best case)",
    "finetuned": "Perplexity by length, fine-tuned model",
}


def summary(
    perplexity: ResultTable, passkey: ResultTable, verdict: Sequence[str], checks: Sequence[Mapping[str, Any]]
) -> str:
    """Plain text, at most 100 columns.

    Args:
        verdict: sentences on how far the model works (`ropewalk.evaluate.verdict`).
        checks: those of checks.json.
    """
    lines = []
    names = {**{method: METHODS[method].display_name for method in baselines()}, "ours": "ours"}
    models = [model for model in _TITLES if len(perplexity.where(model=model))]
    for model in models:
        table = perplexity.where(model=model)
        lines += [_TITLES[model], _line("", [f"{length:,}" for length in table.lengths()])]
        for method in (method for method in names if method in table.values("method")):
            cells = []
            for length in table.lengths():
                # Ours is also read on the long documents alone; a column must hold one set of documents.
                documents = "all" if len(table.where(length=length, document_set="all")) else "long"
                best = table.best_perplexity(model=model, method=method, length=length, document_set=documents)
                cells.append("" if best is None else f"{best:.3f}" if math.isfinite(best) else "NaN")
            lines.append(_line(names[method], cells))
        lines.append("")
    for model in models:
        keys = passkey.where(model=model)
        title = f"Passkey accuracy, {'fine-tuned model' if model == 'finetuned' else 'base model as it is'}"
        lines += [title, _line("", [f"{length:,}" for length in keys.lengths()])]
        for method in (method for method in names if method in keys.values("method")):
            tables = [keys.where(method=method, length=length) for length in keys.lengths()]
            lines += [
                _line(names[method], [_percent(table.accuracy()) for table in tables]),
                _line("  interval", [_range(table.interval(scale=100)) for table in tables]),
                _line("  published", [_percent(table.where(form="published").accuracy()) for table in tables]),
            ]
        lines.append("")
    if verdict:
        lines += [fill(" ".join(verdict), 100), ""]
    if checks:
        failed = [check for check in checks if not check["passed"]]
        lines += [f"{len(checks) - len(failed)} of {len(checks)} checks passed" + (":" if failed else "")]
        lines += [f"  not met: {c['claim']}: {c['measured']:.4g}, limit {c['limit']:.4g}" for c in failed]
    return "\n".join(lines)


def _line(label: str, cells: Iterable[str]) -> str:
    return f"{label:<12}" + "".join(f"{cell:>10}" for cell in cells)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.0f}-{interval[1]:.0f}%"


def print_summary(results: Path) -> None:
    """Print the summary of a whole run in the folder ``results``, and where its report and its model are."""
    perplexity, passkey = (ResultTable.read(results / "plots" / f"{name}.csv") for name in ("perplexity", "passkey"))
    verdict, checks = read_json(results / "verdict.json"), read_json(results / "checks.json")
    print(summary(perplexity, passkey, verdict["sentences"], checks))
    print(f"\nReport: {(results / 'report.html').resolve()}")
    print(f"Model:  {results / 'model'} (transformers checkpoint)")


def main() -> None:
    print_summary(Path("results"))
    print("Runs:   make ui")


if __name__ == "__main__":
    main()
