"""Needle prompts: exact lengths, answers where they are said to be; and their scores."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ropewalk.corpus.recall import is_held_out_key
from ropewalk.evaluate.needle_families import FAMILIES
from ropewalk.evaluate.needles import needle_prompts
from ropewalk.evaluate.prompts import Prompt, Prompts
from ropewalk.evaluate.recall import answered, recall_rows
from ropewalk.models.base import load_tokenizer
from ropewalk.models.continuation import ReadPrompt
from ropewalk.rope import LengthSwitch, RopeScaling, extend
from tiny_models import byte_tokenizer, odd_digit_tokenizer, tiny_llama, tiny_mistral, tiny_rounding
from tolerances import relative_error
from workspace import ROOT

TOKENIZER = byte_tokenizer()
LENGTH = 1600
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea. " * 40
SCALING = RopeScaling((1.0,) * 8, 64, 2000, n_hat=4, attention_factor=1.1)
SWITCH = LengthSwitch(((2000, SCALING),))


def needles(family: str, tokenizer: Any = TOKENIZER, **more: int) -> Prompts:
    sizes = {"length": LENGTH, "trials": 6, "depths": 3, "seed": 0, **more}
    texts = [tokenizer(TEXT, add_special_tokens=False)["input_ids"]] if family == "multi_key_text" else []
    return needle_prompts(tokenizer, family, **sizes, texts=texts)


def prompts(family: str, tokenizer: Any = TOKENIZER, **more: int) -> tuple[Prompt, ...]:
    return needles(family, tokenizer, **more).prompts


@pytest.mark.parametrize("tokenizer", [TOKENIZER, odd_digit_tokenizer()], ids=["bytes", "odd digits"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_have_the_exact_length_and_the_text_says_the_answer(family: str, tokenizer: Any) -> None:
    for prompt in prompts(family, tokenizer):
        text = tokenizer.decode(prompt.ids[1:])
        joined = (" " if family == "variable_tracking" else ", ").join(prompt.answers)
        question = text[text.rindex("\n") :]
        # The tokenizer may have left the question's last letters to the answers.
        first = tokenizer.decode(prompt.right[0])
        start = first[: len(first) - len(prompt.answers[-1 if family == "variable_tracking" else 0])]
        whole = tokenizer(f"{question}{start}{joined}", add_special_tokens=False)["input_ids"]
        tail = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        assert len(prompt.ids) + len(whole) - tail == LENGTH
        for answer in prompt.answers:
            assert answer in text
        for side in (prompt.right, prompt.wrong):
            for ids in side:
                assert tokenizer.decode([*prompt.ids[1:], *ids]).startswith(text)
    assert len({prompt.ids for prompt in prompts(family, tokenizer)}) == 6


def test_a_needle_stands_at_its_depth_among_others() -> None:
    for prompt in prompts("multi_key"):
        text = TOKENIZER.decode(prompt.ids[1:])
        assert text.count("One of the special magic numbers for") == 4
        (value,) = prompt.answers
        assert text.count(value) == 1
        assert is_held_out_key(int(value))
        place = text.index(value) / text.rindex("\nWhat is")
        assert prompt.depth is not None
        assert abs(place - prompt.depth) < 0.55
    depths = [prompt.depth for prompt in prompts("single")]
    assert depths == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    places = [TOKENIZER.decode(p.ids[1:]).index(p.answers[0]) for p in prompts("single")]
    assert places == sorted(places)


def test_a_chain_is_told_hop_by_hop_and_its_last_variable_is_the_right_one() -> None:
    for prompt in prompts("variable_tracking"):
        text = TOKENIZER.decode(prompt.ids[1:])
        first, *later = prompt.answers
        (value,) = {line.split(" = ")[1] for line in text.splitlines() if line.startswith(f"VAR {first} = ")}
        assert text.count(f"assigned the value {value}") == 2
        for before, after in zip(prompt.answers, later, strict=False):
            assert f"VAR {after} = VAR {before}" in text
        places = [text.index(f"VAR {name} =") for name in prompt.answers]
        assert places == sorted(places)
        assert [TOKENIZER.decode(ids).strip() for ids in prompt.right] == [later[-1]]
        assert prompt.chance == 0.25


def test_numbers_under_several_names_are_asked_for_in_the_order_of_the_names() -> None:
    orders = set()
    for prompt in prompts("multi_query"):
        text = TOKENIZER.decode(prompt.ids[1:])
        stated = dict(re.findall(r"One of the special magic numbers for (\S+) is: (\d+)\.", text))
        asked = re.findall(r"[a-z]+-[a-z]+", prompt.asked)
        assert asked == asked[:4] * 2
        assert len({*asked}) == len(stated) == 4
        assert prompt.answers == tuple(stated[name] for name in asked[:4])
        assert all(text.count(answer) == 1 for answer in prompt.answers)
        assert [TOKENIZER.decode(ids).strip() for ids in prompt.right] == [*prompt.answers]
        assert not any(TOKENIZER.decode(ids).strip() in text for ids in prompt.wrong)
        assert prompt.chance == 4 / 11
        orders.add(tuple([*stated].index(name) for name in asked[:4]))
    assert len(orders) > 1


WALKER = load_tokenizer(str(ROOT / "models" / "walker"))


def _kept_list(prompt: Prompt) -> list[str]:
    """The whole words of the list that is asked about; the last one may be cut."""
    document = WALKER.decode(prompt.document)
    return re.findall(r"\b[a-z]{6}\b", document[document.rindex("\n") :])


@pytest.mark.parametrize("family", ["common_words", "frequent_words"])
@settings(max_examples=8, deadline=None)
@given(st.integers(256, 16_384) | st.integers(256, 3000), st.integers(0, 2**32))
@example(256, 0)
@example(16_384, 0)
def test_the_words_asked_for_are_the_most_frequent_that_are_kept(family: str, length: int, seed: int) -> None:
    (prompt,) = needle_prompts(WALKER, family, length=length, trials=1, depths=1, seed=seed).prompts
    answer = WALKER(f"{prompt.asked} {', '.join(prompt.answers)}", add_special_tokens=False)["input_ids"]
    question = WALKER(prompt.asked, add_special_tokens=False)["input_ids"]
    assert len(prompt.ids) + len(answer) - len(question) == length
    assert prompt.depth is None
    counts = Counter(_kept_list(prompt))
    wrong = [WALKER.decode(ids).strip() for ids in prompt.wrong]
    assert [WALKER.decode(ids).strip() for ids in prompt.right] == [*prompt.answers]
    assert len({*prompt.answers, *wrong}) == len(prompt.answers) + 7
    assert all(counts[word] for word in wrong)
    rarer = counts - Counter({word: counts[word] for word in prompt.answers})
    assert min(counts[word] for word in prompt.answers) > max(rarer.values())
    if family == "common_words" and length >= 512:
        ((usual, _),) = Counter(rarer.values()).most_common(1)
        assert {counts[word] for word in prompt.answers} == {10 * usual}
        assert {*rarer.values()} <= {usual, 1}, "words that fill the list up occur once"
    if family == "frequent_words" and length >= 512:
        noise = WALKER.decode(prompt.document).count("...")
        scaled = [rank**2 * counts[word] for rank, word in enumerate(prompt.answers, 2)]
        assert scaled == pytest.approx([noise] * 3, abs=4**2 + 8), "rounded down, and noise that fills the text up"


def test_a_list_is_numbered_to_its_end_and_has_an_example_where_that_is_short() -> None:
    for length in (256, 2048):
        (prompt,) = needle_prompts(WALKER, "common_words", length=length, trials=1, depths=1, seed=0).prompts
        text = WALKER.decode(prompt.ids[1:])
        example, _, text = text.rpartition("Below is")
        items = re.findall(r"\b(\d+)\. [a-z]+", text)
        assert items == [str(number) for number in range(1, len(items) + 1)]
        assert bool(example) == (length == 2048)
        if example:
            shown = Counter(re.findall(r"\. ([a-z]{6})\b", example))
            answers = set(re.findall(r"[a-z]+", example[example.rindex(":") :]))
            assert answers == {word for word, times in shown.items() if times == 3}
            assert len(answers) == len(prompt.answers)
            assert shown.keys().isdisjoint(_kept_list(prompt))


def test_a_length_too_short_for_a_family_is_refused_with_the_least_length() -> None:
    with pytest.raises(ValueError, match=r"family multi_key need at least (\d+) tokens .*found length 300") as raised:
        prompts("multi_key", length=300)
    least = int(str(raised.value).split("at least ")[1].split()[0])
    assert len(prompts("multi_key", length=least + 20)) == 6
    for family in ("multi_query", "common_words", "frequent_words"):
        with pytest.raises(ValueError, match=rf"family {family} need at least \d+ tokens") as raised:
            prompts(family, length=300)
        least = int(str(raised.value).split("at least ")[1].split()[0])
        assert len(prompts(family, length=least + 20)) == 6
    with pytest.raises(ValueError, match="no needle family double; there are single, multi_key"):
        prompts("double")


def test_a_needle_lies_in_the_text_of_a_document_each_in_its_turn() -> None:
    texts = [TOKENIZER(letter * LENGTH, add_special_tokens=False)["input_ids"] for letter in "ab"]
    made = needle_prompts(TOKENIZER, "multi_key_text", length=LENGTH, trials=4, depths=4, seed=0, texts=texts)
    for prompt, letter in zip(made.prompts, "abab", strict=True):
        text = TOKENIZER.decode(prompt.document)
        assert letter * 20 in text
        assert "The grass" not in text
        assert text.count("One of the special magic numbers for") == 4
        assert text.count(prompt.answers[0]) == 1
    with pytest.raises(ValueError, match="lie in documents, found no texts"):
        needle_prompts(TOKENIZER, "multi_key_text", length=LENGTH, trials=1, depths=1, seed=0)
    with pytest.raises(ValueError, match=r"of 1600 tokens needs a text of \d+ tokens, found 9"):
        needle_prompts(TOKENIZER, "multi_key_text", length=LENGTH, trials=1, depths=1, seed=0, texts=[texts[0][:9]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompts_document_and_question_are_its_parts(family: str) -> None:
    for prompt in prompts(family):
        assert (prompt.ids[0], *prompt.document, *prompt.question) == prompt.ids
        assert TOKENIZER.decode(prompt.question).strip() == prompt.asked
        assert prompt.asked[:20] not in TOKENIZER.decode(prompt.document)
        assert answered(TOKENIZER.decode(prompt.document), prompt.answers) == 1.0


def test_answers_are_whole_words_and_numbers() -> None:
    assert answered(" 12345, 67890.", ["12345", "67890", "11111", "22222"]) == 0.5
    assert answered(" 67890 and 12345", ["12345", "67890"]) == 1.0
    assert answered("123456", ["12345"]) == 0.0
    assert answered("ABCDE = VAR XYZ", ["ABCDE", "XYZAB"]) == 0.5


@pytest.mark.parametrize("make", [tiny_llama, lambda **more: tiny_mistral(sliding_window=24, **more)])
def test_what_follows_a_prompt_is_what_transformers_generates_and_scores(make: Any) -> None:
    model = extend(make(vocab_size=258), SCALING)
    ids = torch.randint(0, 250, (1, 90), generator=torch.Generator().manual_seed(3))
    read = ReadPrompt(model, ids[0].tolist(), room=8, chunk=40)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=None
    )[0, 90:].tolist()
    assert list(read.greedy(8)) == expected
    assert list(read.greedy(8, stop=expected[5])) == expected[: expected.index(expected[5])]
    for answer in ([7], [7, 8, 9], expected[:4]):
        row = torch.cat([ids, torch.tensor([answer])], 1)
        with torch.no_grad():
            logs = model(row).logits[0, 89:-1].log_softmax(-1).gather(-1, row[0, 90:, None])
        assert relative_error(read.log_likelihood(answer), float(logs.sum())) < tiny_rounding(row.shape[1])
    assert list(read.greedy(8)) == expected


def test_a_model_that_knows_the_answer_scores_and_one_that_emits_nan_is_marked() -> None:
    asked = needles("single", length=500, trials=3, depths=3)
    made = asked.prompts
    rows = torch.tensor([[*prompt.ids, *prompt.right[0]] for prompt in made])
    model = extend(tiny_llama(vocab_size=258, initializer_range=0.05), SCALING)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    count = len(made[0].right[0])
    for _ in range(30):
        logits = model(rows[:2]).logits[:, -count - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:2, -count:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    scored = recall_rows(model.eval(), TOKENIZER, SWITCH, asked, chunk=200)
    assert [row["depth"] for row in scored] == [0.0, 0.5, 1.0]
    # The digits run on, so the text is not the number alone; the likelihood tells.
    assert [row["likelihood_accuracy"] for row in scored[:2]] == [1.0, 1.0]
    assert {row["chance"] for row in scored} == {1 / 8}
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    broken = recall_rows(model, TOKENIZER, SWITCH, asked, chunk=200)
    assert [(row["nan"], row["accuracy"], row["likelihood_accuracy"]) for row in broken] == [(1, 0.0, 0.0)] * 3
