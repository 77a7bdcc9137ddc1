"""Questions of general benchmarks from local files, as rows of the data sets that lm-evaluation-harness reads.

Below one folder, as their makers publish them::

    mmlu/{dev,test}/<subject>_{dev,test}.csv
    hellaswag/hellaswag_{train,val}.jsonl, or hellaswag_val_full.txt[.bz2] (six lines a question)
    truthfulqa/mc_task.json
    arc/ARC-{Easy,Challenge}-{Train,Dev,Test}.jsonl
    gsm8k/{train,test}.jsonl
"""

import bz2
import csv
import json
from pathlib import Path
from typing import Any

Splits = dict[str, list[dict[str, Any]]]
"""Rows by the name of their split."""


def _existing(*paths: Path) -> Path:
    """The first of ``paths`` that is a file."""
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{paths[0]} is not there; put the benchmark's file there, leave the benchmark out of "
        "evaluate.benchmarks.tasks, or leave out evaluate.benchmarks.path to read it from the hub"
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is not JSON lines ({error})") from None


def read_mmlu(folder: Path) -> dict[str, Splits]:
    tests = sorted((folder / "mmlu" / "test").glob("*_test.csv"))
    if not tests:
        raise FileNotFoundError(f"{folder / 'mmlu' / 'test'} holds no <subject>_test.csv; put MMLU's files there")
    tasks = {}
    for test in tests:
        subject = test.name.removesuffix("_test.csv")
        dev = _existing(folder / "mmlu" / "dev" / f"{subject}_dev.csv")
        tasks[f"mmlu_{subject}"] = {"test": _mmlu_rows(test, subject), "dev": _mmlu_rows(dev, subject)}
    return tasks


def _mmlu_rows(path: Path, subject: str) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as source:
        lines = list(csv.reader(source))
    if any(len(line) != 6 or line[5] not in tuple("ABCD") for line in lines):
        raise ValueError(f"{path} must hold a question, four choices and one of A, B, C, D in every line")
    return [
        {"question": question, "subject": subject, "choices": choices, "answer": "ABCD".index(letter)}
        for question, *choices, letter in lines
    ]


def read_hellaswag(folder: Path) -> dict[str, Splits]:
    folder = folder / "hellaswag"
    lines = folder / "hellaswag_val.jsonl"
    path = _existing(lines, folder / "hellaswag_val_full.txt", folder / "hellaswag_val_full.txt.bz2")
    splits = {"validation": _json_lines(path) if path == lines else _hellaswag_text(path)}
    train = folder / "hellaswag_train.jsonl"
    if train.is_file():
        splits["train"] = _json_lines(train)
    return {"hellaswag": splits}


def _hellaswag_text(path: Path) -> list[dict[str, Any]]:
    """Six lines a question: the activity and the context, the right ending's number, four endings."""
    data = path.read_bytes()
    lines = (bz2.decompress(data) if path.suffix == ".bz2" else data).decode("utf-8").splitlines()
    if len(lines) % 6 or any(line not in tuple("0123") for line in lines[1::6]):
        raise ValueError(f"{path} must hold six lines a question: context, number of the right ending, four endings")
    rows = []
    for start in range(0, len(lines), 6):
        activity, _, context = lines[start].partition(": ")
        parts = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
        rows.append({**parts, "label": lines[start + 1], "endings": lines[start + 2 : start + 6]})
    return rows


def read_truthfulqa(folder: Path, *, task: str) -> dict[str, Splits]:
    path = _existing(folder / "truthfulqa" / "mc_task.json")

    def targets(marks: dict[str, int]) -> dict[str, list[Any]]:
        # The harness takes the first choice of mc1 for the right one.
        ordered = sorted(marks.items(), key=lambda entry: -entry[1])
        return {"choices": [text for text, _ in ordered], "labels": [mark for _, mark in ordered]}

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {"question": e["question"], **{key: targets(e[key]) for key in ("mc1_targets", "mc2_targets")}}
            for e in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold TruthfulQA's multiple-choice questions ({error!r})") from None
    return {task: {"validation": rows}}


def read_arc(folder: Path, *, task: str, name: str) -> dict[str, Splits]:
    splits = {}
    for split, part in (("train", "Train"), ("validation", "Dev"), ("test", "Test")):
        path = _existing(folder / "arc" / f"ARC-{name}-{part}.jsonl")
        try:
            splits[split] = [
                {
                    "id": row["id"],
                    "question": row["question"]["stem"],
                    "choices": {key: [c[key] for c in row["question"]["choices"]] for key in ("text", "label")},
                    "answerKey": row["answerKey"],
                }
                for row in _json_lines(path)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold ARC's questions ({error!r})") from None
    return {task: splits}


def read_gsm8k(folder: Path) -> dict[str, Splits]:
    splits = {split: _json_lines(_existing(folder / "gsm8k" / f"{split}.jsonl")) for split in ("train", "test")}
    return {"gsm8k": splits}
