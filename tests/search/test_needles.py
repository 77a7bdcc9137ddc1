"""Needles: facts in the first half of a document, and only the repetition of their values counts."""

import re

import pytest
import torch

from ropewalk.rope import extend
from ropewalk.search.fitness import Fitness, Part, needle_rows
from tiny_models import byte_tokenizer, tiny_llama, tiny_rounding
from tiny_runs import SPACE
from tolerances import relative_error

pytestmark = pytest.mark.numeric

LENGTH = 1024
TOKENIZER = byte_tokenizer()
TEXT = "the quick brown fox jumps over the lazy dog. " * 40
ROWS = torch.tensor([[256, *TOKENIZER(TEXT)["input_ids"][: LENGTH - 1]]] * 3)


def test_each_fact_is_stated_in_the_first_half_and_its_value_asked_for_at_the_end() -> None:
    rows, asked = needle_rows(ROWS, TOKENIZER, needles=4, seed=0)
    assert rows.shape == asked.shape == ROWS.shape
    for row, chosen in zip(rows, asked, strict=True):
        text = TOKENIZER.decode(row[1:])
        stated = dict(re.findall(r"\nThe (.+) is (\S+)\.\n", text[: LENGTH // 2 + 60]))
        assert len(stated) == 4
        end = text[text.index("\nOnce more") :]
        assert dict(re.findall(r"\nOnce more, the (.+) is (\S+)", end)) == stated
        assert [TOKENIZER.decode(row[chosen]).split()] == [
            [stated[thing] for thing, _ in re.findall(r"the (.+) is (\S+)", end)]
        ]
        # Every answer lies at least a quarter of the document behind its statement.
        assert int(chosen.nonzero()[0]) > LENGTH * 3 // 4
        assert row[0] == 256
    assert len({TOKENIZER.decode(row[chosen]) for row, chosen in zip(rows, asked, strict=True)}) == 3


def test_the_same_seed_gives_the_same_rows() -> None:
    first, again, other = (needle_rows(ROWS, TOKENIZER, needles=2, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_loss_is_transformers_own_on_those_tokens() -> None:
    rows, asked = needle_rows(ROWS, TOKENIZER, needles=4, seed=0)
    point = SPACE.published()[1]
    labels = torch.where(asked, rows, -100)
    with torch.no_grad():
        expected = extend(tiny_llama(vocab_size=258), point)(rows, labels=labels).loss.item()
    for blocks in (0, 4):
        fitness = Fitness(tiny_llama(vocab_size=258), (Part(rows, 1.0, asked),), blocks=blocks)
        found = fitness.evaluate(point, hopeless=(lambda _: False) if blocks else None)
        assert relative_error(found.loss, expected) < tiny_rounding(LENGTH)
    assert len(found.blocks) == 3 * 4


def test_too_many_needles_give_one_line() -> None:
    with pytest.raises(ValueError, match=r"search\.fitness\.needles: 12 facts and their questions take \d+ of 1024"):
        needle_rows(ROWS, TOKENIZER, needles=12, seed=0)
