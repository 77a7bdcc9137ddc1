"""Retrieval or long context: what BM25 finds, and both scores of both ways on the same prompts."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from ropewalk.config import EvaluateConfig, RetrievalConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.passkey import passkey_accuracy
from ropewalk.evaluate.prompt_sets import Draw, PromptSets
from ropewalk.evaluate.prompts import Prompts
from ropewalk.evaluate.recall import recall_rows
from ropewalk.evaluate.retrieval import compare, retrieval_rows, retrieve
from ropewalk.evaluate.uncertainty import share_interval
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape
from tiny_models import byte_tokenizer, learned, tiny_llama
from tiny_pipeline import byte_store

TOKENIZER = byte_tokenizer()
LENGTH = 1024
PLAIN = RopeScaling((1.0,) * 8, 640, LENGTH)
SWITCH = LengthSwitch(((LENGTH, PLAIN),))
TASKS = ("passkey", "single", "multi_key", "multi_value", "multi_key_text")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return byte_store(tmp_path_factory.mktemp("store") / "test")


def asked(store: TokenStore, family: str, *, length: int = LENGTH, trials: int = 3) -> Prompts:
    return Draw(family, length, trials, 3, 0).prompts(TOKENIZER, store)


@pytest.mark.parametrize("family", ["passkey", "multi_key", "multi_key_text"])
def test_bm25_finds_the_needle_among_others_within_the_room(store: TokenStore, family: str) -> None:
    for prompt in asked(store, family).prompts:
        ids = retrieve(TOKENIZER, prompt, room=400, chunk_tokens=192)
        assert 192 <= len(ids) <= 400
        assert f"is{'' if family == 'passkey' else ':'} {prompt.answers[0]}." in TOKENIZER.decode(ids)
        whole = retrieve(TOKENIZER, prompt, room=len(prompt.document), chunk_tokens=192)
        assert whole == list(prompt.document), "all chunks together, in the document's order"


def test_without_bm25s_the_extra_is_named(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"needs bm25s, which is not installed; pip install 'ropewalk\[retrieval\]'"):
        retrieve(TOKENIZER, asked(store, "single").prompts[0], room=300, chunk_tokens=64)


def run(tasks: list[Prompts], model: Any, *, chunk_tokens: int = 160) -> list[dict[str, Any]]:
    models = {"base": model, "finetuned": model}
    return compare(models, TOKENIZER, tasks, SWITCH, PLAIN, chunk_tokens=chunk_tokens, chunk=16_384)


def test_both_ways_are_measured_on_the_same_prompts_of_every_task(store: TokenStore) -> None:
    rows = run([asked(store, task) for task in TASKS], tiny_llama(vocab_size=258))
    assert [(row["task"], row["way"]) for row in rows] == [
        (task, way) for task in TASKS for way in ("long", "retrieved")
    ]
    for row in rows:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["seconds"] > 0
        assert row["trials"] == 3
        limit = LENGTH if row["way"] == "long" else PLAIN.original_length
        assert limit / 2 < row["tokens"] < limit
        assert row["model"] == ("finetuned" if row["way"] == "long" else "base")
        assert 0 <= row["likelihood_accuracy"] <= 1
        assert 0 < row["chance"] < 0.5
        if row["way"] == "long":
            assert row["held"] == 1.0
        elif row["task"] == "multi_value":
            assert 0 < row["held"] < 1.0
        else:
            assert row["held"] > 0


def after_learning(prompts: Prompts) -> Any:
    """A model that learned the answers of all prompts but the last by heart, with what ends them."""
    prompts_in_text = prompts.prompts[:-1]
    rows = torch.tensor([[*prompt.ids, *prompt.right[0], 257] for prompt in prompts_in_text])
    model = tiny_llama(vocab_size=258, initializer_range=0.05)
    return learned(model, rows, len(prompts_in_text[0].right[0]) + 1, steps=40)


@pytest.mark.parametrize("family", ["passkey", "single"])
def test_the_whole_documents_scores_are_those_of_the_tasks_own_tables(store: TokenStore, family: str) -> None:
    task = asked(store, family, length=500, trials=6)
    model = after_learning(task)
    row, _ = run([task], model)
    if family == "passkey":
        rows = passkey_accuracy(model, TOKENIZER, SWITCH, task)
        accuracy, likely = (sum(row[key] for row in rows) / 6 for key in ("correct", "likely"))
    else:
        rows = recall_rows(model, TOKENIZER, SWITCH, task, chunk=200)
        accuracy = sum(row["accuracy"] * row["trials"] for row in rows) / 6
        likely = sum(row["likelihood_accuracy"] * row["trials"] for row in rows) / 6
    assert row["likelihood_accuracy"] == pytest.approx(likely)
    assert row["accuracy"] == pytest.approx(accuracy)
    assert 0 < accuracy < 1


def test_documents_are_read_under_the_switchs_scaling_and_chunks_under_plain_rope(store: TokenStore) -> None:
    models = {name: tiny_llama(vocab_size=258) for name in ("base", "finetuned")}
    longer = RopeScaling((2.0,) * 8, 640, LENGTH, attention_factor=1.1)
    switch = LengthSwitch(((LENGTH - 1, PLAIN), (LENGTH, longer)))
    compare(models, TOKENIZER, [asked(store, "single", trials=1)], switch, PLAIN, chunk_tokens=160, chunk=300)
    assert models["finetuned"].model.rotary_emb.scaling == longer
    assert models["base"].model.rotary_emb.scaling == PLAIN


def test_the_pipeline_asks_its_tasks_where_the_searched_factors_are_compared(store: TokenStore) -> None:
    model = tiny_llama(vocab_size=258)
    config = EvaluateConfig(
        name="tiny", lengths=[LENGTH], base_lengths=[LENGTH], passkey_lengths=[LENGTH],
        retrieval=RetrievalConfig(lengths=[900, LENGTH], tasks=["passkey", "single"], trials=2, chunk_tokens=160),
    )  # fmt: skip
    extension = Extension(RotaryShape(16, 10_000.0, PLAIN.original_length), PLAIN, SWITCH, config, ("longrope",))
    models, prompts = {"base": model, "finetuned": model}, PromptSets(TOKENIZER, store)
    rows = retrieval_rows(extension, models, prompts, seed=0)
    assert [(row["length"], row["task"], row["way"]) for row in rows] == [
        (length, task, way)
        for length in (900, LENGTH)
        for task in ("passkey", "single")
        for way in ("long", "retrieved")
    ]
    assert retrieval_rows(replace(extension, methods=("pi",)), models, prompts, seed=0) == []


def test_a_model_that_emits_nan_is_wrong_and_not_refused(store: TokenStore) -> None:
    model = tiny_llama(vocab_size=258)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    rows = run([asked(store, "single")], model)
    assert [(row["accuracy"], row["likelihood_accuracy"]) for row in rows] == [(0.0, 0.0)] * 2


def test_chunks_that_the_window_has_no_room_for_are_refused(store: TokenStore) -> None:
    expected = (
        r"chunk_tokens must not be above the \d+ tokens that the base model's window of 640 .* task passkey, found 600"
    )
    with pytest.raises(ValueError, match=expected):
        run([asked(store, "passkey")], tiny_llama(vocab_size=258), chunk_tokens=600)


@pytest.mark.parametrize(("correct", "trials"), [(0, 20), (13, 20), (20, 20), (1, 3)])
def test_an_interval_of_whole_answers_is_scipys(correct: int, trials: int) -> None:
    expected = binomtest(correct, trials).proportion_ci(method="wilson")
    assert share_interval(correct / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
