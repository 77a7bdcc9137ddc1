"""Recall rows: exact length, values asked for were stated before, nothing of the passkey task in them."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ropewalk.corpus import recall
from ropewalk.corpus.recall import draw_facts, is_held_out_key, recall_row
from ropewalk.evaluate import needle_families, passkey
from tiny_models import byte_tokenizer

CODE = "def walk(rope):\n    return [pair for pair in rope]\n\n"
ROWS = 600


@dataclass(frozen=True)
class Row:
    """A recall row as text, the facts drawn for it, the statement of each and what is marked as answers."""

    text: str
    facts: list[dict[str, str]]
    statements: list[str]
    answers: list[str]


def marked(tokenizer: Any, row: list[int], answers: list[bool]) -> list[str]:
    """The text of every stretch of answers."""
    stretches = itertools.groupby(zip(answers, row, strict=True), key=lambda pair: pair[0])
    return [tokenizer.decode([token for _, token in pairs]) for answer, pairs in stretches if answer]


def watched_row(seed: int, *, length: int, tokenizer: Any, code: str = CODE) -> Row:
    facts: list[dict[str, str]] = []
    lines: list[str] = []

    class Watched:
        decode = staticmethod(tokenizer.decode)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            lines[:] = texts
            return tokenizer(texts, **options)

    def watched_facts(*arguments: Any, **options: Any) -> Iterator[dict[str, str]]:
        for fact in draw_facts(*arguments, **options):
            facts.append(fact)
            yield fact

    ids = np.asarray(tokenizer(code * (length // len(code) + 1), add_special_tokens=False)["input_ids"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "draw_facts", watched_facts)
        row, answers = recall_row(np.random.default_rng(seed), code=ids, length=length, tokenizer=Watched())
    return Row(tokenizer.decode(row), facts, lines[: len(facts)], marked(tokenizer, row, answers))


def questions(fact: dict[str, str]) -> set[str]:
    """All that may ask for a fact."""
    return {f"\n{question.format(**fact)}\n" for _, question in recall._WORDINGS}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[list[int]]:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(0)
    return [recall_row(rng, code=code, length=700, tokenizer=tokenizer)[0] for _ in range(ROWS)]


@pytest.fixture(scope="module")
def texts(rows: list[list[int]], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize("length", [300, 511, 1022])
def test_a_row_has_exactly_its_length(tokenizer: Any, length: int) -> None:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(length)
    for _ in range(200):
        row, answers = recall_row(rng, code=code, length=length, tokenizer=tokenizer)
        assert len(row) == len(answers) == length


def test_held_out_keys_never_occur(texts: list[str]) -> None:
    values = [int(value) for text in texts for value in re.findall(r"(?<!\d)\d{5}(?!\d)", text)]
    assert len(values) > ROWS  # so five-digit values do occur
    assert not any(is_held_out_key(value) for value in values)


def test_a_seventh_of_all_five_digit_values_is_held_out() -> None:
    keys = [value for value in range(10_000, 100_000) if is_held_out_key(value)]
    assert len(keys) == pytest.approx(90_000 / 7, abs=1)


@pytest.mark.parametrize(("length", "rows"), [(300, 200), (2046, 50)])
def test_what_is_asked_was_stated_before(tokenizer: Any, length: int, rows: int) -> None:
    asked_apart = 0
    for seed in range(rows):
        row = watched_row(seed, length=length, tokenizer=tokenizer)
        stated = 0
        for fact, statement in zip(row.facts, row.statements, strict=True):
            asked = [
                place.start() for question in questions(fact) for place in re.finditer(re.escape(question), row.text)
            ]
            # Some wordings ask as they state: then it is the first of several.
            apart = [place for place in asked if not row.text.startswith(statement, place)]
            if statement not in row.text:
                assert not asked
                continue
            stated += 1
            asked_apart += len(apart)
            assert len(asked) > (statement in questions(fact))
            assert all(place > row.text.index(statement) for place in apart)
            assert fact["value"] in statement
        assert stated
    assert asked_apart > 200


@pytest.mark.parametrize("length", [300, 2046])
def test_the_values_at_the_ends_of_questions_are_marked_as_answers(tokenizer: Any, length: int) -> None:
    for seed in range(100):
        row = watched_row(seed, length=length, tokenizer=tokenizer)
        values = {fact["value"] for fact in row.facts}
        assert row.answers
        assert {answer[1:] for answer in row.answers} <= values
        # Each stands at the end of a line, behind what stands before a value in a question.
        assert all(f"{answer}\n" in row.text and answer[0] in " (" for answer in row.answers)


def test_long_rows_hold_more_facts(tokenizer: Any) -> None:
    def mean_facts(length: int) -> float:
        rows = [watched_row(seed, length=length, tokenizer=tokenizer) for seed in range(50)]
        return float(np.mean([sum(statement in row.text for statement in row.statements) for row in rows]))

    short, middle, long = map(mean_facts, (254, 1022, 2046))
    assert 1 < short < middle / 2
    assert middle < long / 1.5


def test_facts_have_different_names() -> None:
    for seed in range(100):
        facts = list(draw_facts(np.random.default_rng(seed), 40, words=["rope", "walk"]))
        assert len(facts) == 40
        assert len({fact["thing"] for fact in facts}) == 40
        assert len({fact["name"].lower() for fact in facts}) == 40


def test_nothing_that_the_passkey_task_says_occurs(tokenizer: Any) -> None:
    wordings = [passkey.PUBLISHED, *passkey.VARIED]
    task = [text for wording in wordings for text in (wording.task, wording.statement, wording.question)]
    task.append(needle_families.SENTENCES)
    sentences = [part.strip() for text in task for part in re.split(r"(?<=[.?])\s", text.lower())]
    said = [part for sentence in sentences for part in sentence.split("{key}") if len(part) > 5]
    assert {"the pass key is ", "remember it.", "the grass is green.", "what is the pass key?"} < set(said)
    # Its words, each on a line of its own, as the text that things are named by.
    words = sorted({word for text in task for word in re.findall("[a-z]{3,}", text.lower())})
    code = "\n".join(words) + "\n"
    for seed in range(150):
        text = watched_row(seed, length=1022, tokenizer=tokenizer, code=code).text.lower()
        for part in (*said, "pass key", "what is the"):
            assert part not in text, text


def test_no_thing_is_called_pass_key() -> None:
    things = [fact["thing"] for fact in draw_facts(np.random.default_rng(0), 60, words=["pass", "key", "pass"])]
    assert any("key pass" in thing for thing in things)
    assert not any("pass key" in thing for thing in things)


def test_rows_depend_on_the_generator_only(tokenizer: Any) -> None:
    code = np.asarray(tokenizer(CODE * 40, add_special_tokens=False)["input_ids"])
    first, again, other = (
        recall_row(np.random.default_rng(seed), code=code, length=500, tokenizer=tokenizer) for seed in (3, 3, 4)
    )
    assert first == again != other
