"""The passkey task: exact rows in both forms, held-out keys, and the verdicts of generation and of plain logits."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.corpus import recall
from ropewalk.corpus.recall import is_held_out_key, recall_row
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.passkey import PUBLISHED, fillers, passkey_accuracy, passkey_prompt, passkey_prompts
from ropewalk.evaluate.prompt_sets import Draw
from ropewalk.evaluate.prompts import Prompt, Prompts
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.rope import LengthSwitch, RopeScaling, extend
from tiny_models import byte_tokenizer, learned, odd_digit_tokenizer, tiny_llama
from tiny_pipeline import byte_store

TOKENIZER = byte_tokenizer()
SWITCH = LengthSwitch(
    ((400, RopeScaling((1.0,) * 8, 64, 400)), (800, RopeScaling((2.0,) * 8, 64, 800, attention_factor=1.1)))
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return byte_store(tmp_path_factory.mktemp("store") / "test")


def accuracy_of(model: Any, *, chunk: int = 16_384, **sizes: int) -> list[dict[str, Any]]:
    return passkey_accuracy(model, TOKENIZER, SWITCH, passkey_prompts(TOKENIZER, **sizes), chunk=chunk)


def whole(prompt: Prompt) -> list[int]:
    return [*prompt.ids, *prompt.right[0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(10_000, 99_999), st.integers(300, 2000), st.floats(0, 1))
def test_a_prompt_has_its_length_and_the_key_stands_at_its_depth(number: int, length: int, depth: float) -> None:
    key = str(number)
    prompt = passkey_prompt(TOKENIZER, keys=[key, "12"], length=length, depth=depth)
    ids = whole(prompt)
    assert len(ids) == length
    assert ids[0] == TOKENIZER.bos_token_id
    text = TOKENIZER.decode(ids[1:])
    assert TOKENIZER.decode(prompt.right[0]) == f" {key}"
    assert TOKENIZER.decode(prompt.wrong[0]) == " 12"
    assert prompt.answers == (key,)
    assert text.endswith(f"What is the pass key? The pass key is {key}")
    assert text.count(key) == 3
    task, statement = PUBLISHED.task, PUBLISHED.statement.format(key=key)
    filler = len(text) - len(task) - len(statement) - len(f"{PUBLISHED.question} {key}")
    assert text.startswith(task)
    assert abs((text.index(statement) - len(task)) - depth * filler) <= 0.5 + 1e-6
    assert TOKENIZER.decode(prompt.question) == PUBLISHED.question
    assert text == TOKENIZER.decode([*prompt.document, *prompt.question, *prompt.right[0]])


def test_a_prompt_too_short_for_the_question_is_refused_with_the_length_needed() -> None:
    with pytest.raises(ValueError, match=r"passkey need at least \d+ tokens .*, found length 90; leave") as raised:
        passkey_prompt(TOKENIZER, keys=["12345"], length=90, depth=0.5)
    needed = int(re.findall(r"at least (\d+)", str(raised.value))[0])
    assert len(whole(passkey_prompt(TOKENIZER, keys=["12345"], length=needed, depth=0.5))) == needed


def varied(store: TokenStore, *, length: int = 300, depths: int = 5, trials: int = 50, seed: int = 1) -> Prompts:
    return Draw("passkey_varied", length, trials, depths, seed).prompts(TOKENIZER, store)


def test_keys_are_held_out_of_recall_documents_and_so_is_the_wording(store: TokenStore) -> None:
    made = passkey_prompts(TOKENIZER, length=300, depths=5, trials=50, seed=1).prompts
    keys = [prompt.answers[0] for prompt in made]
    assert len(keys) == 50
    assert len(set(keys)) > 45
    assert all(is_held_out_key(int(key)) and len(key) == 5 for key in keys)
    others = {prompt.answers[0] for prompt in varied(store, trials=100).prompts}
    kinds = {"five": r"[1-9]\d{4}", "zero": r"0\d{6}", "nine": r"[1-9]\d{8}", "words": "[a-z]+_[a-z]+"}
    assert {name for key in others for name, kind in kinds.items() if re.fullmatch(kind, key)} == set(kinds)
    assert all(is_held_out_key(int(key)) for key in others if re.fullmatch(kinds["five"], key))
    rng = np.random.default_rng(0)
    code = np.full(400, TOKENIZER("x")["input_ids"][0])
    text = "".join(TOKENIZER.decode(recall_row(rng, code=code, length=400, tokenizer=TOKENIZER)[0]) for _ in range(300))
    values = set(re.findall(r"(?<!\d)\d+(?!\d)", text))
    assert len(values) > 300
    assert not any(is_held_out_key(int(value)) for value in values if len(value) == 5)
    assert not any(value.startswith("0") or len(value) > 8 for value in values)
    assert "pass key" not in text.lower()
    assert "grass is green" not in text


def test_no_value_of_a_recall_document_has_an_adjective() -> None:
    assert not set(recall._ADJECTIVES) & set(recall._NOUNS)
    rng = np.random.default_rng(0)
    words = {word for _ in range(2000) for word in recall._value(rng).split("_") if not word.isdigit()}
    assert words
    assert words <= set(recall._NOUNS)


def test_each_band_of_depth_has_its_trials_and_the_places_differ_within_it(store: TokenStore) -> None:
    for prompts in (passkey_prompts(TOKENIZER, length=600, depths=5, trials=50, seed=1), varied(store, length=600)):
        depths = [prompt.depth for prompt in prompts.prompts]
        assert depths == [depth for depth in (0.1, 0.3, 0.5, 0.7, 0.9) for _ in range(10)]
        places = []
        for prompt in prompts.prompts:
            text = TOKENIZER.decode(prompt.document)
            # From the first of two mentions to their middle, at most a statement away from where it begins.
            places.append((text.index(prompt.answers[0]) - 10) / len(text))
        assert len({round(place, 3) for place in places}) > 20
        assert all(abs(place - depth) < 0.1 + 130 / 600 for place, depth in zip(places, depths, strict=True))


def test_with_fewer_trials_than_bands_the_forms_take_different_ones(store: TokenStore) -> None:
    few = {"length": 300, "depths": 4, "trials": 2, "seed": 0}
    assert [prompt.depth for prompt in passkey_prompts(TOKENIZER, **few).prompts] == [0.125, 0.625]  # type: ignore[arg-type]
    assert [prompt.depth for prompt in varied(store, **few).prompts] == [0.375, 0.875]


def test_the_varied_form_takes_every_document_in_turn_each_time_from_another_place(store: TokenStore) -> None:
    prompts = varied(store, length=300, trials=40).prompts
    assert len({prompt.ids for prompt in prompts}) == 40
    assert {len(whole(prompt)) for prompt in prompts} == {300}
    assert Counter(prompt.cluster for prompt in prompts) == dict.fromkeys(range(len(store)), 40 // len(store))
    for prompt in prompts:
        assert prompt.cluster is not None
        document = bytes(store.document(prompt.cluster).astype("uint8"))
        assert any(bytes(prompt.document[start : start + 50]) in document for start in (0, len(prompt.document) - 50))


def test_texts_that_are_too_short_go_on_in_the_next_ones(store: TokenStore) -> None:
    total = len(store.tokens)
    (first, ids), (second, _) = fillers(store, tokens=total + 10, count=2, seed=0)
    assert first != second
    begin = int(store.starts[first])
    turned = np.roll(store.tokens, -begin)
    assert ids == [*turned.tolist(), *turned[:10].tolist()]


def test_the_other_keys_differ_from_the_right_one_in_one_digit_or_word(store: TokenStore) -> None:
    for prompt in varied(store).prompts:
        key, *others = (TOKENIZER.decode(ids).strip() for ids in (*prompt.right, *prompt.wrong))
        assert len({key, *others}) == 8
        pieces = [re.findall(r"\d|[a-z]+", text) for text in (key, *others)]
        assert {sum(a != b for a, b in zip(pieces[0], other, strict=True)) for other in pieces[1:]} == {1}


def copying_llama(rows: torch.Tensor, count: int) -> Any:
    """A model that learned some of the answers by heart, and some not."""
    return learned(tiny_llama(vocab_size=258, initializer_range=0.05), rows, count, steps=30)


def test_the_verdict_is_that_of_greedy_decoding() -> None:
    sizes: dict[str, int] = {"length": 300, "depths": 3, "trials": 12, "seed": 4}
    made = passkey_prompts(TOKENIZER, **sizes).prompts
    rows, count = torch.tensor([whole(prompt) for prompt in made]), len(made[0].right[0])
    model = copying_llama(rows[::2], count)
    verdicts = accuracy_of(model, **sizes)
    prompts = rows[:, :-count]
    extend(model, SWITCH.scalings[0])
    decoded = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=count, min_new_tokens=count
    )
    right = (decoded[:, -count:] == rows[:, -count:]).all(1)
    assert 0 < right.sum() < 12
    assert [row["correct"] for row in verdicts] == right.view(3, 4).sum(1).tolist()
    assert [(row["length"], row["form"], row["depth"], row["cluster"], row["trials"]) for row in verdicts] == [
        (300, "published", depth, band, 4) for band, depth in enumerate((0.1667, 0.5, 0.8333))
    ]
    extend(model, SWITCH.scalings[0])
    for row, four in zip(verdicts, (made[start : start + 4] for start in range(0, 12, 4)), strict=True):
        likely = 0
        for prompt in four:
            ids = torch.tensor([[*prompt.ids, *answer] for answer in (*prompt.right, *prompt.wrong)])
            with torch.no_grad():
                chosen = model(ids).logits[:, -count - 1 : -1].log_softmax(-1).gather(-1, ids[:, -count:, None])
            likely += int(chosen.sum((1, 2)).argmax() == 0)
        assert row["likely"] == likely
    assert ResultTable.from_rows(verdicts).accuracy() == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize(("length", "factor"), [(300, 1), (400, 1), (401, 2), (900, 4)])
def test_the_scaling_is_the_switchs_for_the_length(length: int, factor: float) -> None:
    model = tiny_llama(vocab_size=258)
    accuracy_of(model, length=length, depths=1, trials=1, seed=0)
    # Beyond the last entry, for 800 tokens, the switch goes on at doublings.
    assert model.model.rotary_emb.scaling == SWITCH.for_length(length)
    assert model.model.rotary_emb.scaling.factors == (factor,) * 8


def test_long_prompts_are_read_in_chunks_to_the_same_verdict() -> None:
    model = tiny_llama(vocab_size=258)
    keys = ("10006", "99998")
    rows = torch.tensor([whole(passkey_prompt(TOKENIZER, keys=[key], length=300, depth=0.5)) for key in keys])
    learned = copying_llama(rows[:1], 6)
    for reader in (model, learned):
        at_once, parts = (
            accuracy_of(reader, chunk=chunk, length=300, depths=2, trials=4, seed=2) for chunk in (16_384, 70)
        )
        assert at_once == parts


@pytest.mark.parametrize("key", ["12345", "51234", "78901", "90120", "11111"])
def test_a_tokenizer_that_splits_digits_oddly_gives_rows_of_the_exact_length(key: str) -> None:
    tokenizer = odd_digit_tokenizer()
    prompt = passkey_prompt(tokenizer, keys=[key, "12346"], length=300, depth=0.3)
    ids = whole(prompt)
    assert len(ids) == 300
    assert tokenizer.decode(ids[1:]).endswith(f"The pass key is {key}")
    assert key.endswith(tokenizer.decode(prompt.right[0]).removeprefix("s ").strip())


def writes(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """``model`` after learning to write ``answer`` after ``prompt``."""
    return learned(model, torch.tensor([[*prompt, *answer]]), len(answer), steps=25)


@pytest.mark.parametrize(
    ("written", "correct"),
    [("s 12345", 1), ("s |1|2|3|4|5", 1), ("s |1|2|34|5", 1), ("s |1|2|34|6", 0), ("s |12|9|9|9", 0)],
)
def test_a_key_counts_by_its_text_and_not_by_its_tokens(written: str, correct: int) -> None:
    """This tokenizer joins "is" and the space after it, so an answer begins with the question's last letter."""
    tokenizer = odd_digit_tokenizer()
    prompt = passkey_prompt(tokenizer, keys=["12345", "12346"], length=260, depth=0.5)
    prompts = Prompts("passkey", 260, (prompt,))
    assert [tokenizer.decode([token]) for token in prompt.right[0]] == ["s ", "12", "345"]
    answer = [token for piece in written.split("|") for token in tokenizer(piece)["input_ids"]]
    switch = LengthSwitch(((400, RopeScaling((1.0,) * 8, 64, 400)),))
    model = writes(extend(tiny_llama(vocab_size=len(tokenizer)), switch.longest), list(prompt.ids), answer)
    (row,) = passkey_accuracy(model, tokenizer, switch, prompts)
    assert (row["correct"], row["nan"]) == (correct, 0)


def test_a_model_that_emits_nan_is_marked() -> None:
    model = tiny_llama(vocab_size=258)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    (row,) = accuracy_of(model, length=300, depths=1, trials=3, seed=0)
    assert (row["trials"], row["correct"], row["nan"]) == (3, 0, 3)
