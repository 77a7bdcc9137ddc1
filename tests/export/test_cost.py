"""What other software loses is measured under exactly what it applies."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ropewalk.evaluate.compare import measure
from ropewalk.evaluate.perplexity import DocumentSet
from ropewalk.export.cost import cost_metrics, cost_tasks, costs, exported_scalings
from tiny_models import WINDOW, token_rows

from .conftest import long_switch_for


def test_an_export_applies_the_last_factors_or_the_two_of_the_window_and_never_n_hat(llama: Any) -> None:
    switch = long_switch_for(llama)
    last = switch.longest
    assert last.n_hat > 0
    short, long = exported_scalings(switch, "same")
    assert short == long == replace(last, n_hat=0)
    short, long = exported_scalings(switch, "recovered")
    assert long == replace(last, n_hat=0)
    assert short.factors == switch.scalings[1].factors
    assert (short.n_hat, short.attention_factor) == (0, last.attention_factor)


def test_costs_are_perplexities_of_the_same_documents_in_every_way(llama: Any) -> None:
    switch = long_switch_for(llama)
    lengths = (WINDOW, 2 * WINDOW, 8 * WINDOW)
    short, long = (
        DocumentSet(name, token_rows(length)) for name, length in (("all", lengths[1]), ("long", lengths[2]))
    )
    with torch.no_grad():
        tasks = cost_tasks("finetuned", switch, lengths, (short, long), target=lengths[1])
        rows = [result.row for result in measure({"finetuned": llama}, tasks)]
    by_length = costs(rows)
    assert list(by_length) == list(lengths)
    assert all(set(by_way) == {"with ropewalk", "without n_hat", "same", "recovered"} for by_way in by_length.values())
    assert by_length[WINDOW]["same"] != by_length[WINDOW]["recovered"]
    # Beyond every boundary only n_hat is lost.
    assert by_length[8 * WINDOW]["same"] == by_length[8 * WINDOW]["recovered"] == by_length[8 * WINDOW]["without n_hat"]
    assert by_length[8 * WINDOW]["same"] != by_length[8 * WINDOW]["with ropewalk"]
    metrics = cost_metrics(rows)
    assert metrics["percent_lost_same"][str(WINDOW)] == pytest.approx(
        100 * (by_length[WINDOW]["same"] / by_length[WINDOW]["with ropewalk"] - 1)
    )
