"""Recall rows: exact length, values asked for were stated, keys of the passkey task held out."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ropewalk.corpus.recall import is_held_out_key, recall_row
from tiny_models import byte_tokenizer

CODE = "def walk(rope):\n    return [pair for pair in rope]\n\n"
ROWS = 1500


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[list[int]]:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(0)
    return [recall_row(rng, code=code, length=700, tokenizer=tokenizer) for _ in range(ROWS)]


@pytest.fixture(scope="module")
def texts(rows: list[list[int]], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize("length", [300, 511, 1022])
def test_a_row_has_exactly_its_length(tokenizer: Any, length: int) -> None:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(length)
    for _ in range(200):
        assert len(recall_row(rng, code=code, length=length, tokenizer=tokenizer)) == length


def test_held_out_keys_never_occur(texts: list[str]) -> None:
    values = [int(value) for text in texts for value in re.findall(r"(?<!\d)\d{5}(?!\d)", text)]
    assert len(values) > ROWS  # so five-digit values do occur
    assert not any(is_held_out_key(value) for value in values)


def test_a_seventh_of_all_five_digit_values_is_held_out() -> None:
    keys = [value for value in range(10_000, 100_000) if is_held_out_key(value)]
    assert len(keys) == pytest.approx(90_000 / 7, abs=1)


def test_what_is_asked_was_stated_before(texts: list[str]) -> None:
    for text in texts:
        values = Counter(re.findall(r"(?<!\d)\d{2,8}(?!\d)|[a-z]+_[a-z]+", text))
        assert max(values.values()) >= 2


def test_rows_depend_on_the_generator_only(tokenizer: Any) -> None:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    one, again, other = (
        recall_row(np.random.default_rng(seed), code=code, length=500, tokenizer=tokenizer) for seed in (3, 3, 4)
    )
    assert one == again != other
