"""Local files of the benchmarks: read as the harness's data sets have them, and refused by name."""

import bz2
from pathlib import Path

import pytest

from ropewalk.evaluate.tasks import local_tasks
from tiny_benchmarks import small_benchmarks, write


def test_every_format_is_read(tmp_path: Path) -> None:
    folder = small_benchmarks(tmp_path)
    mmlu = local_tasks("mmlu", folder)
    assert list(mmlu) == ["mmlu_anatomy", "mmlu_virology"]
    assert mmlu["mmlu_anatomy"]["test"][3] == {
        "question": "What, is 3?",
        "subject": "anatomy",
        "choices": ["one", "two", "three", "four"],
        "answer": 3,
    }
    (row, *_) = local_tasks("hellaswag", folder)["hellaswag"]["validation"]
    assert (row["activity_label"], row["ctx_a"], row["ctx_b"]) == ("Rowing", "A man rows 0. he", "")
    assert (row["label"], row["endings"]) == ("0", ["sits.", "rows.", "sleeps.", "sings."])
    (row, *_) = local_tasks("truthfulqa_mc1", folder)["truthfulqa_mc1"]["validation"]
    assert row["mc1_targets"] == {"choices": ["right one", "wrong one", "also wrong"], "labels": [1, 0, 0]}
    arc = local_tasks("arc_challenge", folder)["arc_challenge"]
    assert {split: len(rows) for split, rows in arc.items()} == {"train": 26, "validation": 26, "test": 26}
    assert arc["test"][0]["choices"] == {"text": list("wxyz"), "label": list("ABCD")}
    assert local_tasks("gsm8k", folder)["gsm8k"]["test"][2]["answer"].endswith("#### 3")


def test_hellaswag_is_read_from_its_makers_json_and_compressed_text_too(tmp_path: Path) -> None:
    folder = small_benchmarks(tmp_path) / "hellaswag"
    text = folder / "hellaswag_val_full.txt"
    plain = local_tasks("hellaswag", tmp_path)
    (folder / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(text.read_bytes()))
    text.unlink()
    assert local_tasks("hellaswag", tmp_path) == plain
    rows = [{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "label": 1, "endings": list("defg")}]
    write(folder / "hellaswag_val.jsonl", rows)
    write(folder / "hellaswag_train.jsonl", rows)
    assert local_tasks("hellaswag", tmp_path)["hellaswag"] == {"validation": rows, "train": rows}


@pytest.mark.parametrize(
    ("benchmark", "missing"),
    [
        ("hellaswag", "hellaswag/hellaswag_val.jsonl"),
        ("truthfulqa_mc2", "truthfulqa/mc_task.json"),
        ("arc_easy", "arc/ARC-Easy-Train.jsonl"),
        ("gsm8k", "gsm8k/train.jsonl"),
        ("mmlu", "mmlu/test"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, benchmark: str, missing: str) -> None:
    with pytest.raises(FileNotFoundError, match=missing):
        local_tasks(benchmark, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        local_tasks(benchmark, tmp_path / "nowhere")


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = small_benchmarks(tmp_path)
    write(folder / "mmlu" / "test" / "anatomy_test.csv", "What?,one,two,A\n")
    write(folder / "hellaswag" / "hellaswag_val_full.txt", "one\ntwo\n")
    write(folder / "truthfulqa" / "mc_task.json", "[1]")
    write(folder / "gsm8k" / "test.jsonl", "{")
    for benchmark in ("mmlu", "hellaswag", "truthfulqa_mc1", "gsm8k"):
        with pytest.raises(ValueError, match=r"anatomy_test|hellaswag_val_full|mc_task|test\.jsonl"):
            local_tasks(benchmark, folder)


def test_the_real_files_are_read(shared: Path) -> None:
    folder = shared / "data" / "benchmarks"
    assert len(local_tasks("hellaswag", folder)["hellaswag"]["validation"]) == 10_042
    assert len(local_tasks("truthfulqa_mc1", folder)["truthfulqa_mc1"]["validation"]) == 790
    mmlu = local_tasks("mmlu", folder)
    assert all(len(splits["dev"]) == 5 for splits in mmlu.values())
    assert sum(len(splits["test"]) for splits in mmlu.values()) > 3000
