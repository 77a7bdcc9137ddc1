"""A few made-up questions of every benchmark, in files of their makers' formats."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, content: str | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))


def small_benchmarks(folder: Path) -> Path:
    """Write them to ``folder``."""
    subject = "".join(f'"What, is {n}?",one,two,three,four,{"ABCD"[n % 4]}\n' for n in range(6))
    for name in ("anatomy", "virology"):
        for split in ("dev", "test"):
            write(folder / "mmlu" / split / f"{name}_{split}.csv", subject)
    hellaswag = "".join(f"Rowing: A man rows {n}. he\n{n % 4}\nsits.\nrows.\nsleeps.\nsings.\n" for n in range(12))
    write(folder / "hellaswag" / "hellaswag_val_full.txt", hellaswag)
    marks = {"wrong one": 0, "right one": 1, "also wrong": 0}
    truthful = [{"question": f"Is it {n}?", "mc1_targets": marks, "mc2_targets": marks} for n in range(4)]
    write(folder / "truthfulqa" / "mc_task.json", json.dumps(truthful))
    choices = [{"text": text, "label": label} for text, label in zip("wxyz", "ABCD", strict=True)]
    arc = [{"id": str(n), "question": {"stem": f"Why {n}?", "choices": choices}, "answerKey": "B"} for n in range(26)]
    for part in ("Train", "Dev", "Test"):
        write(folder / "arc" / f"ARC-Challenge-{part}.jsonl", arc)
    for split in ("train", "test"):
        rows = [{"question": f"How much is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(8)]
        write(folder / "gsm8k" / f"{split}.jsonl", rows)
    return folder
