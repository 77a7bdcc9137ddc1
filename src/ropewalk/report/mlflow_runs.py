"""An evaluation and a search as MLflow runs: what can be compared and charted there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk import tracking
from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.evaluate.verdict import Verdict
from ropewalk.report import plots
from ropewalk.report.headline import figures_at
from ropewalk.report.style import groups

_POINT = ("lambda_", "n_hat", "attention_factor")
"""Beginnings of the columns that hold a point of a search."""
Series = list[tuple[int, float]]


def log_comparison(
    perplexity: ResultTable,
    passkey: ResultTable,
    verdict: Verdict,
    *,
    name: str,
    weights: Mapping[str, str],
    card: Mapping[str, Any],
    target: int,
) -> None:
    """A child run per model and method, so that several picked in the UI share a chart for each of their metrics.

    A metric's step is the input length in tokens. ``perplexity`` is on all test documents, ``perplexity_long`` on the
    longest ones, so the two do not compare; both are the method's best case. Method, model and lengths are parameters,
    the test documents an MLflow dataset and the weights a logged model, the same one in every run that reads them. The
    run of the extended model under our factors has the lengths of the verdict.

    Args:
        name: name of the base model.
        weights: hash of each model's weights.
        card: the data card that prepare wrote.
        target: the length whose figures are metrics of their own, for the table of runs.
    """
    keys = [key for table in (perplexity, passkey) for key, _ in table.groups("model", "method")]
    for model, method in dict.fromkeys(keys):
        rows, passkeys = (table.where(model=model, method=method) for table in (perplexity, passkey))
        lengths = sorted({*rows.lengths(), *passkeys.lengths()})
        params = {
            "model": model,
            "method": method,
            "lengths": ", ".join(map(str, lengths)),
            "shortest_length": lengths[0],
            "longest_length": lengths[-1],
            "protocol": "; ".join(rows.values("protocol")),
        }
        with tracking.child_run(f"{model} {method}", tags=tracking.run_tags("stage", "commit", "model", "way")):
            tracking.log_params(params)
            at_target = figures_at(rows, passkeys, length=target)
            tracking.log_metrics({f"{metric}_at_target": value for metric, value in at_target.items()})
            if (model, method) == (verdict.extended, "ours"):
                tracking.log_metrics(verdict.lengths)
            if "test" in card:
                tracking.log_dataset(card["corpus"], source=card["corpus"], card=card, splits=("test",))
            model_id = tracking.link_model(f"{name}-{model}", weights.get(model, ""))
            for metric, series in _by_length(rows, passkeys).items():
                tracking.log_series(metric, series, model_id=model_id)


def _by_length(perplexity: ResultTable, passkey: ResultTable) -> dict[str, Series]:
    """Finite values by input length, under the name of their metric."""
    series: dict[str, Series] = {}
    for documents in perplexity.values("document_set"):
        best = perplexity.best_by_length(document_set=documents)
        points = [(length, row["perplexity"]) for length, row in best.items() if math.isfinite(row["perplexity"])]
        name = "perplexity" if documents == "all" else "perplexity_long"
        series[name] = points
        on_keys = [(length, row["key_perplexity"]) for length, row in best.items() if row["key_tokens"]]
        series[f"{name}_key_tokens"] = [(length, value) for length, value in on_keys if math.isfinite(value)]
    series["passkey_accuracy"] = list(passkey.accuracies().items())
    series["passkey_likelihood_accuracy"] = list(passkey.accuracies("likelihood_accuracy").items())
    for form in passkey.values("form"):
        series[f"passkey_accuracy_{form}"] = list(passkey.where(form=form).accuracies().items())
    return series


def log_search(name: str, rows: Sequence[Row], table: Path, *, best: int = 10) -> None:
    """Log a search to the active run: best loss by tokens and by generation, a table of all trials, child runs of the
    best.

    Pictures show its convergence and the best factors of each length. The step of ``best_loss_by_tokens`` is the number
    of forward tokens in thousands, the step of a child run's ``rescale_factor`` is the pair.
    """
    for length, length_rows in groups(rows, lambda row: row["length"]).items():
        for metric, points in _search_series(length_rows).items():
            tracking.log_series(f"{metric}_{length}", points)
        measured = [row for row in length_rows if row["phase"] != "gradient" and row["loss"] is not None]
        # A trial may repeat a point that was read before it.
        points_seen = {tuple(row[key] for key in row if key.startswith(_POINT)): row for row in reversed(measured)}
        for rank, row in enumerate(sorted(points_seen.values(), key=lambda row: row["loss"])[:best], start=1):
            tags = {key: str(row[key]) for key in ("length", "phase", "trial", "generation")}
            with tracking.child_run(f"{name} {length} best {rank}", tags=tags):
                tracking.log_metrics({key: row[key] for key in ("loss", "n_hat", "attention_factor")})
                factors = {key.removeprefix("lambda_"): row[key] for key in row if key.startswith("lambda_")}
                tracking.log_series("rescale_factor", [(int(pair), factor) for pair, factor in factors.items()])
    tracking.log_file(table)
    tracking.log_figure(plots.search({name: rows}), "convergence.png")
    tracking.log_figure(plots.searched_factors(rows), "factors.png")


def _search_series(rows: Sequence[Row]) -> dict[str, Series]:
    """Points of each metric of the search at one length."""
    paid = {row["tokens"] // 1000: row["best_so_far"] for row in rows if row["best_so_far"] is not None}
    gradient, evolution = ([row for row in rows if row["phase"] == phase] for phase in ("gradient", "evolution"))
    generations = groups((row for row in evolution if row["loss"] is not None), lambda row: row["generation"])
    return {
        "best_loss_by_tokens": list(paid.items()),
        "gradient_best_loss": [(row["trial"], row["best"]) for row in gradient if row["best"] is not None],
        "evolution_best_loss": list({r["generation"]: r["best"] for r in evolution if r["best"] is not None}.items()),
        "evolution_mean_loss": [
            (number, sum(row["loss"] for row in trials) / len(trials)) for number, trials in generations.items()
        ],
    }
