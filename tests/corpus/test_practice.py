"""Practice rows: exact length, copies that repeat, lists that name each value every time, lessons in order."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ropewalk.corpus.practice import copy_row, list_row, practice_row
from tiny_models import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.mark.parametrize("length", [64, 254, 1000])
def test_rows_have_exactly_their_length(tokenizer: Any, length: int) -> None:
    rng = np.random.default_rng(length)
    for _ in range(50):
        assert len(copy_row(rng, length=length, longest=16, tokenizer=tokenizer)) == length
        assert len(list_row(rng, length=length, tokenizer=tokenizer)) == length


def test_a_copy_repeats_itself(tokenizer: Any) -> None:
    for seed in range(50):
        row = copy_row(np.random.default_rng(seed), length=64, longest=8, tokenizer=tokenizer)[:32]
        assert any(row[period:] == row[:-period] for period in range(8, 17, 2))  # two bytes a pair


def test_a_list_gives_each_name_one_value(tokenizer: Any) -> None:
    text = tokenizer.decode(list_row(np.random.default_rng(1), length=2000, tokenizer=tokenizer))
    entries = [line for line in text.splitlines()[:-1] if line]
    values = {line.split()[0]: line for line in entries}
    assert max(Counter(entries).values()) > 1
    assert all(line in values.values() for line in entries)


def test_lessons_follow_each_other(tokenizer: Any) -> None:
    def kinds(step: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for seed in range(400):
            rng = np.random.default_rng((seed, step))
            row = practice_row(rng, step=step, practice_steps=300, length=254, tokenizer=tokenizer)
            text = "" if row is None else tokenizer.decode(row)
            counts["text" if row is None else "copy" if text.isdigit() else "list"] += 1
        return counts

    assert kinds(0) == {"copy": 400}
    middle, lists, late = kinds(150), kinds(400), kinds(1200)
    assert 120 < middle["copy"] < 280
    assert not middle["list"]
    assert lists["list"] > 180
    assert lists["text"] > 60
    assert late["text"] > 280
    assert late["list"] > 10
    assert late["copy"] > 10
