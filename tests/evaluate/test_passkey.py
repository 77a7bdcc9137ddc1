"""The passkey task: exact rows, held-out keys, and the same verdict as greedy decoding."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.corpus.recall import is_held_out_key, recall_row
from ropewalk.evaluate import passkey
from ropewalk.evaluate.passkey import passkey_accuracy, passkey_prompt, passkey_prompts
from ropewalk.evaluate.prompts import Prompt
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.rope import LengthSwitch, RopeScaling, extend
from tiny_models import byte_tokenizer, learned, odd_digit_tokenizer, tiny_llama

TOKENIZER = byte_tokenizer()
SWITCH = LengthSwitch(
    ((400, RopeScaling((1.0,) * 8, 64, 400)), (800, RopeScaling((2.0,) * 8, 64, 800, attention_factor=1.1)))
)


def accuracy_of(model: Any, *, chunk: int = 16_384, **sizes: int) -> list[dict[str, Any]]:
    return passkey_accuracy(model, TOKENIZER, SWITCH, passkey_prompts(TOKENIZER, **sizes), chunk=chunk)


def whole(prompt: Prompt) -> list[int]:
    return [*prompt.ids, *prompt.right[0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(10_000, 99_999), st.integers(300, 2000), st.floats(0, 1))
def test_a_prompt_has_its_length_and_the_key_stands_at_its_depth(key: int, length: int, depth: float) -> None:
    prompt = passkey_prompt(TOKENIZER, key=key, length=length, depth=depth)
    ids = whole(prompt)
    assert len(ids) == length
    assert ids[0] == TOKENIZER.bos_token_id
    text = TOKENIZER.decode(ids[1:])
    assert TOKENIZER.decode(prompt.right[0]) == f" {key}"
    assert prompt.answers == (str(key),)
    assert text.endswith(f"What is the pass key? The pass key is {key}")
    assert text.count(str(key)) == 3
    task, statement, question = passkey._TASK, passkey._KEY.format(key=key), f"{passkey.QUESTION} {key}"
    filler = len(text) - len(task) - len(statement) - len(question)
    assert text.startswith(task)
    assert abs((text.index(statement) - len(task)) - depth * filler) <= 0.5 + 1e-6
    assert TOKENIZER.decode(prompt.question) == passkey.QUESTION
    assert text == TOKENIZER.decode([*prompt.document, *prompt.question, *prompt.right[0]])


def test_a_prompt_too_short_for_the_question_is_refused_with_the_length_needed() -> None:
    with pytest.raises(ValueError, match=r"prompt needs \d+ tokens with this tokenizer, found length 90") as raised:
        passkey_prompt(TOKENIZER, key=12345, length=90, depth=0.5)
    needed = int(re.findall(r"needs (\d+)", str(raised.value))[0])
    assert len(whole(passkey_prompt(TOKENIZER, key=12345, length=needed, depth=0.5))) == needed


def test_keys_are_held_out_of_recall_documents_and_so_is_the_wording() -> None:
    made = passkey_prompts(TOKENIZER, length=300, depths=5, trials=50, seed=1).prompts
    keys = [int(prompt.answers[0]) for prompt in made]
    assert len(keys) == 50
    assert len(set(keys)) > 45
    assert all(is_held_out_key(key) and len(str(key)) == 5 for key in keys)
    rng = np.random.default_rng(0)
    code = np.full(400, TOKENIZER("x")["input_ids"][0])
    text = "".join(TOKENIZER.decode(recall_row(rng, code=code, length=400, tokenizer=TOKENIZER)[0]) for _ in range(300))
    values = {int(number) for number in re.findall(r"(?<!\d)\d{5}(?!\d)", text)}
    assert len(values) > 100
    assert not any(is_held_out_key(value) for value in values)
    assert "pass key" not in text.lower()
    assert "grass is green" not in text


def copying_llama(rows: torch.Tensor, count: int) -> Any:
    """A model that learned some of the answers by heart, and some not."""
    return learned(tiny_llama(vocab_size=258, initializer_range=0.05), rows, count, steps=30)


def test_the_verdict_is_that_of_greedy_decoding() -> None:
    sizes: dict[str, int] = {"length": 300, "depths": 3, "trials": 12, "seed": 4}
    made = passkey_prompts(TOKENIZER, **sizes).prompts
    rows, count = torch.tensor([whole(prompt) for prompt in made]), len(made[0].right[0])
    model = copying_llama(rows[::2], count)
    found = accuracy_of(model, **sizes)
    prompts = rows[:, :-count]
    extend(model, SWITCH.scalings[0])
    decoded = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=count, min_new_tokens=count
    )
    right = (decoded[:, -count:] == rows[:, -count:]).all(1)
    assert 0 < right.sum() < 12
    assert [row["correct"] for row in found] == right.view(3, 4).sum(1).tolist()
    assert [(row["length"], row["depth"], row["trials"]) for row in found] == [(300, d, 4) for d in (0.0, 0.5, 1.0)]
    assert ResultTable.from_rows(found).accuracy() == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize(("length", "which"), [(300, 0), (400, 0), (401, 1), (900, 1)])
def test_the_scaling_is_the_switchs_for_the_length(length: int, which: int) -> None:
    model = tiny_llama(vocab_size=258)
    accuracy_of(model, length=length, depths=1, trials=1, seed=0)
    assert model.model.rotary_emb.scaling == SWITCH.scalings[which]


def test_long_prompts_are_read_in_chunks_to_the_same_verdict() -> None:
    model = tiny_llama(vocab_size=258)
    keys = (10_006, 99_998)
    rows = torch.tensor([whole(passkey_prompt(TOKENIZER, key=key, length=300, depth=0.5)) for key in keys])
    learned = copying_llama(rows[:1], 6)
    for one in (model, learned):
        at_once, parts = (
            accuracy_of(one, chunk=chunk, length=300, depths=2, trials=4, seed=2) for chunk in (16_384, 70)
        )
        assert at_once == parts


@pytest.mark.parametrize("key", [12_345, 51_234, 78_901, 90_120, 11_111])
def test_a_tokenizer_that_splits_digits_oddly_gives_rows_of_the_exact_length(key: int) -> None:
    tokenizer = odd_digit_tokenizer()
    prompt = passkey_prompt(tokenizer, key=key, length=300, depth=0.3)
    ids = whole(prompt)
    assert len(ids) == 300
    assert tokenizer.decode(ids[1:]).endswith(f"The pass key is {key}")
    assert str(key).endswith(tokenizer.decode(prompt.right[0]).removeprefix("s ").strip())


def writes(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """``model`` after learning to write ``answer`` after ``prompt``."""
    return learned(model, torch.tensor([[*prompt, *answer]]), len(answer), steps=25)


@pytest.mark.parametrize(
    ("written", "correct"),
    [("s 12345", 1), ("s |1|2|3|4|5", 1), ("s |1|2|34|5", 1), ("s |1|2|34|6", 0), ("s |12|9|9|9", 0)],
)
def test_a_key_counts_by_its_text_and_not_by_its_tokens(
    written: str, correct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This tokenizer joins "is" and the space after it, so an answer begins with the question's last letter."""
    tokenizer = odd_digit_tokenizer()
    monkeypatch.setattr(passkey, "draw_key", lambda rng: 12_345)
    prompts = passkey_prompts(tokenizer, length=260, depths=1, trials=1, seed=0)
    (prompt,) = prompts.prompts
    assert [tokenizer.decode([token]) for token in prompt.right[0]] == ["s ", "12", "345"]
    answer = [token for piece in written.split("|") for token in tokenizer(piece)["input_ids"]]
    switch = LengthSwitch(((400, RopeScaling((1.0,) * 8, 64, 400)),))
    model = writes(extend(tiny_llama(vocab_size=len(tokenizer)), switch.longest), list(prompt.ids), answer)
    (found,) = passkey_accuracy(model, tokenizer, switch, prompts)
    assert (found["correct"], found["nan"]) == (correct, 0)


def test_a_model_that_emits_nan_is_marked() -> None:
    model = tiny_llama(vocab_size=258)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    (found,) = accuracy_of(model, length=300, depths=1, trials=3, seed=0)
    assert (found["trials"], found["correct"], found["nan"]) == (3, 0, 3)
