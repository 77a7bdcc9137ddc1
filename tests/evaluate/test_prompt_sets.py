"""Which prompts a configuration asks for: drawn once, read again as they are, and drawn where there are none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ropewalk.config import EvaluateConfig, RetrievalConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate import prompt_sets
from ropewalk.evaluate.prompt_sets import INDEX, Draw, PromptSets, all_draws, passkey_draws, write_prompts
from ropewalk.evaluate.prompts import Prompts
from ropewalk.files import read_json
from tiny_models import byte_tokenizer, odd_digit_tokenizer
from tiny_pipeline import byte_store

TOKENIZER = byte_tokenizer()
DRAWS = [Draw(family, 1000, 4, 2, 0) for family in ("passkey", "passkey_varied", "single", "multi_key_text")]
CONFIG = EvaluateConfig(
    name="tiny", lengths=[64], base_lengths=[64], passkey_lengths=[500, 900], passkey_trials=8, passkey_depths=4,
    passkey_long_trials=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return byte_store(tmp_path_factory.mktemp("store") / "test")


def test_each_set_is_asked_for_once_with_fewer_trials_beyond_the_target() -> None:
    config = replace(
        CONFIG, needles=["single"], needle_lengths=[700], needle_trials=6, needle_depths=3,
        retrieval=RetrievalConfig(lengths=[500], tasks=["passkey", "multi_key"], trials=8),
    )  # fmt: skip
    assert all_draws(config, target=600, seed=7) == [
        Draw("passkey", 500, 4, 4, 7), Draw("passkey_varied", 500, 4, 4, 7),
        Draw("passkey", 900, 1, 4, 7), Draw("passkey_varied", 900, 1, 4, 7),
        Draw("single", 700, 6, 3, 7), Draw("passkey", 500, 8, 4, 7), Draw("multi_key", 500, 8, 3, 7),
    ]  # fmt: skip
    odd = passkey_draws(replace(config, passkey_trials=7, passkey_long_trials=1), target=600, seed=7)
    assert [(draw.family, draw.length, draw.trials) for draw in odd] == [
        ("passkey", 500, 4), ("passkey_varied", 500, 3), ("passkey", 900, 1),
    ]  # fmt: skip
    by_default = all_draws(replace(CONFIG, needles=["single"]), target=900, seed=0)
    assert [draw.length for draw in by_default if draw.family == "single"] == CONFIG.passkey_lengths
    few = all_draws(replace(CONFIG, retrieval=RetrievalConfig(lengths=[500], trials=3)), target=900, seed=0)
    assert {draw.depths for draw in few if draw.trials == 3} == {3}, "no more places than trials"
    assert {draw.family for draw in few if draw.trials == 3} == {*RetrievalConfig().tasks}


def test_prompts_are_read_from_the_folder_as_they_were_drawn(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [draw.prompts(TOKENIZER, store) for draw in DRAWS]
    rows = write_prompts(tmp_path / "prompts", DRAWS, TOKENIZER, store)
    assert {path.name for path in (tmp_path / "prompts").iterdir()} == {INDEX, *(draw.file for draw in DRAWS)}
    assert [(row["hash"], row["prompts"]) for row in rows] == [(made.hash, 4) for made in drawn]

    def refuse(draw: Draw, *_: Any) -> Prompts:
        raise AssertionError(f"{draw} is drawn, not read")

    monkeypatch.setattr(Draw, "prompts", refuse)
    opened = PromptSets.open(tmp_path / "prompts", TOKENIZER, store)
    read_sets = [opened.of(draw) for draw in DRAWS]
    assert read_sets == drawn
    assert [made.hash for made in read_sets] == [made.hash for made in drawn]


def test_the_hash_is_of_everything_in_the_prompts(store: TokenStore) -> None:
    made = DRAWS[2].prompts(TOKENIZER, store)
    first = made.prompts[0]
    changed = [
        replace(first, ids=(*first.ids[:-1], 0)), replace(first, wrong=first.wrong[1:]), replace(first, depth=0.25),
        replace(first, answers=("1",)), replace(first, question_tokens=1),
    ]  # fmt: skip
    others = [replace(made, prompts=(prompt, *made.prompts[1:])) for prompt in changed]
    others += [replace(made, family="multi_key"), replace(made, prompts=made.prompts[::-1])]
    assert len({made.hash, *(other.hash for other in others)}) == 8


def test_what_the_folder_does_not_hold_is_drawn_and_the_folder_left_as_it_is(tmp_path: Path, store: TokenStore) -> None:
    write_prompts(tmp_path / "prompts", DRAWS, TOKENIZER, store)
    before = {path.name: path.read_bytes() for path in (tmp_path / "prompts").iterdir()}
    opened = PromptSets.open(tmp_path / "prompts", TOKENIZER, store)
    for other in (replace(DRAWS[0], length=1001), replace(DRAWS[1], seed=1), replace(DRAWS[3], trials=2)):
        made = opened.of(other)
        assert made == other.prompts(TOKENIZER, store)
        assert made.hash not in {row["hash"] for row in read_json(tmp_path / "prompts" / INDEX)["sets"]}
    assert {path.name: path.read_bytes() for path in (tmp_path / "prompts").iterdir()} == before


def test_prompts_that_were_drawn_in_another_way_are_not_taken(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path / "prompts", DRAWS, TOKENIZER, store)
    assert PromptSets.open(tmp_path / "prompts", TOKENIZER, store).stored == set(DRAWS)
    monkeypatch.setattr(prompt_sets, "REVISION", prompt_sets.REVISION + 1)
    assert not PromptSets.open(tmp_path / "prompts", TOKENIZER, store).stored


@pytest.mark.parametrize("what", ["tokenizer", "documents"])
def test_prompts_of_another_tokenizer_or_of_other_documents_are_not_taken(
    tmp_path: Path, store: TokenStore, what: str
) -> None:
    write_prompts(tmp_path / "prompts", DRAWS, TOKENIZER, store)
    tokenizer = odd_digit_tokenizer() if what == "tokenizer" else TOKENIZER
    documents = byte_store(tmp_path / "other", seed=1) if what == "documents" else store
    opened = PromptSets.open(tmp_path / "prompts", tokenizer, documents)
    assert opened.of(DRAWS[-1]) == DRAWS[-1].prompts(tokenizer, documents) != DRAWS[-1].prompts(TOKENIZER, store)


# Of prompts that figures were measured on, with this tokenizer.
HASHES = {
    Draw("passkey", 512, 100, 10, 0): "df2033daeadef78f8eeade9f9181737de54e73c51dffe1bb20902d49ad452619",
    Draw("single", 2048, 20, 5, 0): "a997f3537b6ddac9442d675ec49caed440033aec6abf57a08400b6bcf439beca",
    Draw("multi_key", 2048, 20, 5, 0): "19f0377a43ca13366326ba955489c42076dc54ff40a2815d31c766f0b442e685",
    Draw("multi_value", 2048, 20, 5, 0): "9255039678f5de07920145bd9a784e22b80fab57ee84268325e52db386cc5faa",
    Draw("variable_tracking", 2048, 20, 5, 0): "ce287f779e9d1eb3fb3af8df76fc25f70ac1de80a3da180c9809cf885d79f5d7",
    Draw("multi_key_text", 1000, 20, 5, 0): "2bc0aa4ea5e75de1188383f7d94c45c42cac56fa7781a714f1b9d43652ced827",
    Draw("multi_query", 2048, 20, 5, 0): "146f116aaa6e9cf74c7dfeda6988159bb6475c3afcaff2d5fd8317e2934e033d",
    Draw("common_words", 2048, 20, 5, 0): "9ef33a5582b39b81997766087d81f56d277a130dafb61dccfee478bb9243846b",
    Draw("frequent_words", 2048, 20, 5, 0): "b72e35ab9e758ea08480969dcfe4ff02a59fe74ba89950a7e2c69491b6b209ec",
}


@pytest.mark.parametrize("draw", HASHES, ids=lambda draw: draw.family)
def test_the_prompts_are_those_of_every_version_before(draw: Draw, store: TokenStore) -> None:
    assert draw.prompts(TOKENIZER, store).hash == HASHES[draw]


def test_a_family_in_documents_takes_those_that_are_long_enough_in_turn(store: TokenStore) -> None:
    draw = Draw("multi_key_text", 1000, 5, 5, 0)
    texts = [document[:40].tobytes() for document in store.first_tokens(1000)[:, 1:].astype("uint8")]
    for trial, prompt in enumerate(draw.prompts(TOKENIZER, store).prompts):
        pieces = bytes(prompt.document)
        held = [any(text[start : start + 8] in pieces for start in range(0, 40, 8)) for text in texts]
        assert held == [number == trial % 4 for number in range(4)]
    with pytest.raises(ValueError, match="holds 0 documents of at least 1999 tokens, 1 are needed"):
        replace(draw, length=2000).prompts(TOKENIZER, store)
