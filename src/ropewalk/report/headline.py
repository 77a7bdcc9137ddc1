"""The handful of figures that a run is compared by: quality at the window and the target, and cost."""

import math
from collections.abc import Mapping
from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.report.results import Results

_COSTLY = ("search_first", "finetune_first", "finetune_second", "search_second", "recover")
"""Stages that make the extended model; the others measure it."""


def headline(files: Results, *, window: int, target: int) -> dict[str, float]:
    """Perplexity and passkey accuracy of the extended model at its target, perplexity in the window, how far it works,
    and what it cost.

    The extended model is the fine-tuned one, or the base model under our factors where nothing was trained. What was
    not measured is left out.

    Args:
        window: window of the base model, tokens.
        target: the length that the model was extended to, tokens.

    Returns:
        ``tokens`` is the number of tokens that the searches read and the training trained on, ``hours`` how long they
        took on the devices of the run.
    """
    perplexity, passkey = (files.table(name).where(method="ours") for name in ("perplexity", "passkey"))
    model = "finetuned" if len(perplexity.where(model="finetuned")) else "base"
    ours, keys = perplexity.where(model=model), passkey.where(model=model)
    inside = figures_at(ours, keys, length=window).get("perplexity")
    return {
        **{f"{name}_at_target": value for name, value in figures_at(ours, keys, length=target).items()},
        **({} if inside is None else {"perplexity_at_window": inside}),
        **_verdict(files),
        **_cost(files.metrics()),
    }


def _verdict(files: Results) -> dict[str, float]:
    verdict = files.json("verdict.json", "evaluate") or {}
    return {name: verdict[name] for name in ("works_to", "reads_to", "retrieves_to") if name in verdict}


def figures_at(perplexity: ResultTable, passkey: ResultTable, *, length: int) -> dict[str, float]:
    """Lowest perplexity and passkey accuracy of these rows at a length; what was not measured is left out.

    The perplexity is on all test documents, or on the long ones where only they were read.
    """
    sets = perplexity.where(length=length).values("document_set")
    documents = "all" if "all" in sets else next(iter(sets), None)
    figures = {
        "perplexity": perplexity.best_perplexity(length=length, document_set=documents),
        "passkey": passkey.where(length=length).accuracy(),
    }
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def _cost(metrics: Mapping[str, Any]) -> dict[str, float]:
    tokens, hours = 0, 0.0
    for stage in _COSTLY:
        stage_metrics = metrics.get(stage, {})
        searches = [
            value for value in stage_metrics.values() if isinstance(value, Mapping) and "forward_tokens" in value
        ]
        # The stage that trains a control beside our model keeps the metrics of both.
        training = stage_metrics.get(stage, stage_metrics)
        tokens += sum(search["forward_tokens"] for search in searches) + training.get("tokens", 0)
        hours += sum(search["seconds"] for search in searches) / 3600 + training.get("hours", 0.0)
    return {"tokens": tokens, "hours": hours}
