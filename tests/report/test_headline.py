"""The figures that a run is compared by."""

from pathlib import Path

import pytest

from ropewalk.files import write_json, write_table
from ropewalk.report.headline import headline
from ropewalk.report.results import Results


def results(folder: Path, *, model: str) -> Results:
    row = {"model": model, "method": "ours", "documents": 2, "tokens": 9, "protocol": "one pass", "variant": ""}
    perplexity = [
        row | {"length": 64, "document_set": "all", "perplexity": 3.0},
        row | {"length": 256, "document_set": "all", "perplexity": 2.5},
        row | {"length": 256, "document_set": "long", "perplexity": 1.0},
        row | {"length": 256, "document_set": "all", "perplexity": 1.0, "method": "yarn"},
        row | {"length": 512, "document_set": "long", "perplexity": 4.0},
    ]
    keys = [
        {
            "model": model,
            "method": "ours",
            "length": 256,
            "form": "published",
            "depth": depth,
            "cluster": 0,
            "trials": 4,
            "correct": 3,
            "likely": 4,
        }
        for depth in (0, 1)
    ]
    write_table(folder / "plots" / "perplexity.csv", perplexity)
    write_table(folder / "plots" / "passkey.csv", keys)
    return Results(folder, folder / "plots")


@pytest.mark.parametrize("model", ["finetuned", "base"])
def test_quality_is_that_of_the_extended_model_and_cost_that_of_making_it(tmp_path: Path, model: str) -> None:
    files = results(tmp_path, model=model)
    search = {"at_128": {"forward_tokens": 100, "seconds": 36.0}, "at_256": {"forward_tokens": 200, "seconds": 36.0}}
    training = {"tokens": 1000, "hours": 1.0}
    for stage, metrics in {
        "search_first": search,
        "finetune_first": training,
        "finetune_second": {"finetune_second": training, "control": {"tokens": 10**6, "hours": 9.0}},
        "search_second": {},
        "report": {"tokens": 10**9},
    }.items():
        write_json(tmp_path / "metrics" / f"{stage}.json", metrics)
    write_json(tmp_path / "verdict.json", {"window": 64, "works_to": 256, "reads_to": 512, "sentences": []})
    assert headline(files, window=64, target=256) == {
        "works_to": 256,
        "reads_to": 512,
        "perplexity_at_target": 2.5,
        "passkey_at_target": 0.75,
        "perplexity_at_window": 3.0,
        "tokens": 2300,
        "hours": pytest.approx(2.02),
    }


def test_what_was_not_measured_is_left_out_and_long_documents_stand_in(tmp_path: Path) -> None:
    files = results(tmp_path, model="finetuned")
    assert headline(files, window=128, target=512) == {"perplexity_at_target": 4.0, "tokens": 0, "hours": 0.0}
