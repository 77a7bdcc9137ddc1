"""Retrieval or long context: exact prompts, what BM25 finds, and the same verdict as greedy decoding."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.config import RetrievalConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate import retrieval
from ropewalk.evaluate.retrieval import Question, compare, needle_question, passkey_question, retrieve
from ropewalk.rope import RopeScaling
from tiny_models import byte_tokenizer, tiny_llama
from tiny_roads import byte_store

TOKENIZER = byte_tokenizer()
LENGTH = 1024
PLAIN = RopeScaling((1.0,) * 8, 512, LENGTH)
CONFIG = RetrievalConfig(lengths=[LENGTH], trials=3, chunk_tokens=128)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return byte_store(tmp_path_factory.mktemp("store") / "test")


def words(count: int) -> list[int]:
    rng = np.random.default_rng(0)
    text = " ".join("".join(chr(97 + letter) for letter in rng.integers(0, 26, 6)) for _ in range(count // 7 + 1))
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])[:count]


def needle(depth: float, *, seed: int = 0, length: int = LENGTH) -> Question:
    return needle_question(TOKENIZER, np.random.default_rng(seed), words(length), length=length, depth=depth)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_question_has_its_length_its_needle_at_its_depth_and_others_beside_it(depth: float) -> None:
    made = needle(depth)
    assert 1 + len(made.document) + len(made.question) + len(made.answer) == LENGTH
    text, number = TOKENIZER.decode(made.document), TOKENIZER.decode(made.answer).strip()
    name = made.text.split("for ")[1].split("?")[0]
    assert text.count(number) == 1
    assert f"The special number for {name} is {number}." in text
    assert text.count("The special number for") == 4
    assert abs(text.index(number) / len(text) - depth) < 0.2
    assert TOKENIZER.decode(made.question).strip() == made.text


def test_a_passkey_question_is_the_passkey_task_cut_into_document_question_and_answer() -> None:
    made = passkey_question(TOKENIZER, np.random.default_rng(0), length=LENGTH, depth=0.5)
    assert 1 + len(made.document) + len(made.question) + len(made.answer) == LENGTH
    assert TOKENIZER.decode(made.question).endswith("What is the pass key? The pass key is")
    assert "What is" not in TOKENIZER.decode(made.document)
    assert TOKENIZER.decode(made.document).count(TOKENIZER.decode(made.answer).strip()) == 2


def test_a_text_that_is_too_short_is_refused_with_the_tokens_it_needs() -> None:
    with pytest.raises(ValueError, match=r"needs room for \d+ and \d+ tokens of text with this tokenizer, found 9"):
        needle_question(TOKENIZER, np.random.default_rng(0), words(9), length=LENGTH, depth=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_bm25_finds_the_needle_among_others_within_the_room(seed: int) -> None:
    made = needle(0.2 * seed, seed=seed, length=4 * LENGTH)
    found = retrieve(TOKENIZER, made, room=400, chunk_tokens=128)
    assert 128 <= len(found) <= 400
    assert f"is {TOKENIZER.decode(made.answer).strip()}." in TOKENIZER.decode(found)
    whole = retrieve(TOKENIZER, made, room=len(made.document), chunk_tokens=128)
    assert whole == list(made.document), "all chunks together, in the document's order"


def test_without_bm25s_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"needs bm25s, which is not installed; pip install 'ropewalk\[retrieval\]'"):
        retrieve(TOKENIZER, needle(0.5), room=300, chunk_tokens=64)


def run(store: TokenStore, model: Any, **changes: Any) -> list[dict[str, Any]]:
    switch = ((LENGTH, PLAIN),)
    models = {"base": model, "finetuned": model}
    return compare(models, TOKENIZER, store, switch, PLAIN, replace(CONFIG, **changes), seed=0)


def test_both_ways_are_measured_on_the_same_questions(store: TokenStore) -> None:
    rows = run(store, tiny_llama(vocab_size=258))
    assert [(row["task"], row["way"]) for row in rows] == [
        ("passkey", "long"), ("passkey", "retrieved"), ("needle", "long"), ("needle", "retrieved"),
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["seconds"] > 0
        assert row["trials"] == 3
        limit = LENGTH if row["way"] == "long" else PLAIN.original_length
        assert limit / 2 < row["tokens"] < limit
        assert row["held"] == 1.0


def test_the_verdict_is_that_of_greedy_decoding() -> None:
    made = needle(0.5)
    model = tiny_llama(vocab_size=258, initializer_range=0.05)
    prompt = torch.tensor([[256, *made.document, *made.question]])
    decoded = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=4)[0, -4:]
    assert retrieval._answers(model, PLAIN, prompt[0].tolist(), decoded.tolist())
    assert not retrieval._answers(model, PLAIN, prompt[0].tolist(), [*decoded[:3].tolist(), 0])


def test_chunks_that_the_window_has_no_room_for_are_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match=r"chunk_tokens must not be above the \d+ tokens that the base model's window"):
        run(store, tiny_llama(vocab_size=258), chunk_tokens=500)
