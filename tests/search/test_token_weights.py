"""What counts in a search document: text, answers about needles, and tokens copied from beyond the window."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.config import FitnessConfig
from ropewalk.rope import extend
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.token_weights import copied_tokens, needle_rows, weighted_rows
from tiny_models import byte_tokenizer, tiny_llama, tiny_rounding
from tiny_runs import SPACE
from tolerances import relative_error

pytestmark = pytest.mark.numeric

LENGTH = 1024
TOKENIZER = byte_tokenizer()
TEXT = "the quick brown fox jumps over the lazy dog. " * 40
ROWS = torch.tensor([[256, *TOKENIZER(TEXT)["input_ids"][: LENGTH - 1]]] * 3)
JOINT = FitnessConfig("joint", needles=4, needle_weight=0.3, copied_weight=0.5)


def test_each_fact_is_stated_before_it_is_asked_for_half_of_them_in_the_middle() -> None:
    rows, text, answers = needle_rows(ROWS, TOKENIZER, needles=4, seed=(0,))
    assert rows.shape == text.shape == answers.shape == ROWS.shape
    for row, of_text, answer in zip(rows, text, answers, strict=True):
        written = TOKENIZER.decode(row[1:])
        stated = {match[1]: match for match in re.finditer(r"\nThe (.+) is (\S+)\.\n", written)}
        asked = list(re.finditer(r"\nOnce more, the (.+) is (\S+)", written))
        assert len(stated) == len(asked) == 4
        assert all(stated[match[1]][2].startswith(match[2][:4]) for match in asked)
        assert all(stated[match[1]].start() < match.start() for match in asked)
        assert [match.start() > 0.9 * LENGTH for match in asked] == [False, False, True, True]
        assert all(0.3 * LENGTH < match.start() < 0.6 * LENGTH for match in asked[:2])
        assert TOKENIZER.decode(row[answer]).split() == [stated[match[1]][2] for match in asked]
        # What is left of the text is its beginning, unbroken but for the facts.
        assert torch.equal(row[of_text], ROWS[0][: int(of_text.sum())])
        assert not (of_text & answer).any()
    assert len({TOKENIZER.decode(row[answer]) for row, answer in zip(rows, answers, strict=True)}) == 3


def test_the_same_seed_gives_the_same_rows() -> None:
    first, again, other = (needle_rows(ROWS, TOKENIZER, needles=2, seed=seed)[0] for seed in ((1,), (1,), (1, 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_needles_take_no_more_than_half_of_a_row() -> None:
    _, text, answers = needle_rows(ROWS, TOKENIZER, needles=40, seed=(0,))
    assert (text.sum(1) >= LENGTH // 2).all()
    assert (answers.sum(1) > 20).all()
    none = FitnessConfig("needles", text_weight=0, needles=4, needle_weight=1.0)
    with pytest.raises(
        ValueError, match=r"search\.fitness=needles finds nothing to judge in 64 tokens, .* take search/f"
    ):
        weighted_rows(ROWS[:, :64], none, tokenizer=TOKENIZER, window=64, seed=(0,))


def test_facts_that_are_not_stated_are_asked_for_all_the_same() -> None:
    rows, text, answers = needle_rows(ROWS, TOKENIZER, needles=4, seed=(0,), stated=False)
    written = TOKENIZER.decode(rows[0, 1:])
    assert "\nThe " not in written
    assert written.count("\nOnce more, the ") == 4
    assert int(answers.sum()) > 4
    assert int(text.sum()) > int(needle_rows(ROWS, TOKENIZER, needles=4, seed=(0,))[1].sum())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=80), st.integers(5, 40))
def test_a_copied_token_has_its_source_beyond_the_window_and_no_nearer_one(ids: list[int], window: int) -> None:
    copied = copied_tokens(np.array(ids, np.int64), window=window)
    for place in range(len(ids)):
        sources = [
            earlier
            for earlier in range(4, place)
            if place >= 4 and ids[earlier - 4 : earlier] == ids[place - 4 : place]
        ]
        far = [earlier for earlier in sources if place - earlier > window]
        expected = len(far) == len(sources) and any(ids[earlier] == ids[place] for earlier in far)
        assert copied[place] == expected


def test_the_loss_is_the_weighted_sum_of_transformers_own_means() -> None:
    rows, weights = weighted_rows(ROWS, JOINT, tokenizer=TOKENIZER, window=64, seed=(0,))
    needles, text, answers = needle_rows(ROWS, TOKENIZER, needles=4, seed=(0,))
    copied = torch.stack([torch.from_numpy(copied_tokens(row.numpy(), window=64)) for row in needles]) & text
    assert torch.equal(rows, needles)
    text[:, 0] = False
    point = SPACE.published()[1]
    model, expected = extend(tiny_llama(vocab_size=258), point), 0.0
    for weight, chosen in ((1.0, text), (0.3, answers), (0.5, copied)):
        if chosen.any():
            with torch.no_grad():
                expected += weight * model(rows, labels=torch.where(chosen, rows, -100)).loss.item()
    for blocks in (0, 4):
        fitness = Fitness(model, (Part(rows, 1.0, weights),), blocks=blocks)
        evaluation = fitness.evaluate(point, hopeless=(lambda _: False) if blocks else None)
        assert evaluation.loss is not None
        assert relative_error(evaluation.loss, expected) < tiny_rounding(LENGTH)
    assert np.mean(list(evaluation.blocks.values())) == pytest.approx(expected, rel=1e-4)


def test_a_kind_that_does_not_occur_is_left_out() -> None:
    rows = torch.arange(200)[None]
    weighted = weighted_rows(rows, FitnessConfig("c", copied_weight=1.0), tokenizer=None, window=16, seed=(0,))
    assert weighted.weights is not None
    assert weighted.weights.sum() == pytest.approx(1.0)
    assert weighted_rows(rows, FitnessConfig("p"), tokenizer=None, window=16, seed=(0,)).weights is None
