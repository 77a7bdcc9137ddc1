"""The questions that are asked of the result tables, and the types of what they hold."""

import math
from pathlib import Path

import pytest

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.uncertainty import cluster_interval, share_interval
from ropewalk.files import write_table

ROW = {"model": "base", "method": "pi", "variant": "s=4", "length": 64, "document_set": "all"}
ROWS = [
    {**ROW, "perplexity": 7.0},
    {**ROW, "perplexity": 5.0, "variant": "s=8"},
    {**ROW, "perplexity": 3.0, "document_set": "long"},
    {**ROW, "perplexity": 1.0, "method": "ntk"},
    {**ROW, "perplexity": 1.0, "model": "control"},
    {**ROW, "perplexity": 1.0, "length": 128},
]


def test_the_best_case_is_the_lowest_of_a_methods_variants() -> None:
    table = ResultTable.from_rows(ROWS)
    best = table.best_case(model="base", method="pi", length=64, document_set="all")
    assert best == {**ROW, "perplexity": 5.0, "variant": "s=8"}
    assert table.best_perplexity(model="base", method="pi", length=64) == 3.0
    assert table.best_perplexity(model="base", method="yarn", length=64) is None
    of_both = table.best_case(model="base", method=("pi", "ntk"), length=64)
    assert of_both is not None
    assert of_both["method"] == "ntk"
    assert {n: row["perplexity"] for n, row in table.best_by_length(model="base", method="pi").items()} == {
        64: 3.0,
        128: 1.0,
    }
    assert table.lengths() == [64, 128]


def test_what_a_file_holds_is_typed_and_what_was_not_measured_is_not_a_number(tmp_path: Path) -> None:
    rows = [{**ROW, "variant": 4, "perplexity": math.inf, "low": ""}, {**ROW, "perplexity": 2, "low": 1.5}]
    write_table(tmp_path / "perplexity.csv", rows)
    first, second = ResultTable.read(tmp_path / "perplexity.csv").rows()
    assert (first["variant"], first["perplexity"]) == ("4", math.inf)
    assert math.isnan(first["low"])
    assert (second["low"], second["perplexity"]) == (1.5, 2.0)
    assert [type(second[name]) for name in ("variant", "length", "perplexity")] == [str, int, float]


def test_an_empty_table_answers_every_question() -> None:
    table = ResultTable.from_rows([])
    assert len(table.where(model="base", document_set="long")) == 0
    assert (table.lengths(), table.values("method"), list(table.groups("model", "method"))) == ([], [], [])
    assert table.best_case(model="base", method="pi", length=64) is None
    assert table.accuracy() is None


def test_accuracy_counts_trials_whether_they_are_right_or_have_a_score() -> None:
    keys = ResultTable.from_rows(
        [{"trials": 10, "correct": 9, "likely": 10}, {"trials": 30, "correct": 14, "likely": 20}]
    )
    assert keys.accuracy() == 23 / 40
    assert keys.accuracy(scale=100) == 57.5
    assert keys.accuracy("likelihood_accuracy") == 0.75
    needles = ResultTable.from_rows(
        [{"trials": 1, "accuracy": 0.5, "chance": 0.25}, {"trials": 3, "accuracy": 1.0, "chance": 0.125}]
    )
    assert needles.accuracy() == pytest.approx(3.5 / 4)
    assert needles.accuracy("chance") == pytest.approx(0.625 / 4)


def test_an_interval_is_of_the_clusters_of_each_form() -> None:
    rows = [
        {"form": form, "cluster": number, "depth": depth, "trials": 2, "correct": 2 * (number > 1), "likely": 2}
        for form in ("published", "varied")
        for number in range(4)
        for depth in (0.25, 0.75)
    ]
    keys = ResultTable.from_rows(rows)
    assert keys.interval() == cluster_interval([[(0, 4), (0, 4), (4, 4), (4, 4)]] * 2)
    assert keys.interval("likelihood_accuracy", scale=100) == tuple(100 * end for end in share_interval(1.0, 8))
    assert keys.where(cluster=(0, 1)).interval() is None


def test_a_paired_ratio_is_of_one_length_and_left_out_where_nothing_was_compared() -> None:
    row = {"model": "base", "against": "pi", "low": 0.8, "high": 0.95, "p_value": 0.01}
    table = ResultTable.from_rows(
        [{**row, "length": 64, "perplexity_ratio": ""}, {**row, "length": 128, "perplexity_ratio": 0.9}]
    )
    assert table.paired_ratio(model="base", against="pi", length=64) is None
    ratio = table.paired_ratio(model="base", against="pi", length=128)
    assert ratio is not None
    assert ratio["perplexity_ratio"] == 0.9
