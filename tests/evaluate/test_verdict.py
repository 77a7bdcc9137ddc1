"""How far a model works: where reading and retrieval hold, by the stated thresholds, and what is said of it."""

from typing import Any

import pytest

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.verdict import Verdict

Rows = list[dict[str, Any]]

WINDOW = 256
PERPLEXITY = {256: 12.0, 512: 11.0, 1024: 10.0, 2048: 12.0, 4096: 12.1}
GAINS = {512: 0.02, 1024: 0.05, 2048: 0.04, 4096: 0.05}


def perplexity(by_length: dict[int, float], *, inside: float | None = 12.0, model: str = "base") -> Rows:
    row = {"variant": "", "documents": 4, "tokens": 9, "document_set": "all", "protocol": ""}
    rows = [{"model": model, "method": "ours", "length": n, "perplexity": value} for n, value in by_length.items()]
    rows += [{"model": "base", "method": "none", "length": WINDOW, "perplexity": inside}] if inside else []
    return [row | values for values in rows]


def far_context(gains: dict[int, float], *, low: float | str = "", model: str = "base") -> Rows:
    row = {"model": model, "method": "ours", "document_set": "all", "low": low, "high": low, "documents": 2}
    return [row | {"length": length, "gain_nats": gain} for length, gain in gains.items()]


def passkeys(ours: dict[int, int], *, inside: int | None = 10, model: str = "base") -> Rows:
    row = {"form": "published", "depth": 0.5, "cluster": 0, "trials": 10}
    rows = [{"model": model, "method": "ours", "length": n, "correct": right} for n, right in ours.items()]
    rows += [] if inside is None else [{"model": "base", "method": "none", "length": WINDOW, "correct": inside}]
    return [row | values | {"likely": values["correct"]} for values in rows]


def needles(family: str, ours: dict[int, float], *, inside: float) -> Rows:
    row = {"family": family, "model": "base", "depth": "", "trials": 10, "likelihood_accuracy": 0, "chance": 0}
    rows = [{"method": "ours", "length": length, "accuracy": share} for length, share in ours.items()]
    return [row | values for values in [*rows, {"method": "none", "length": WINDOW, "accuracy": inside}]]


def verdict(
    read: Rows,
    keys: Rows | None = None,
    asked: Rows | None = None,
    far: Rows | None = None,
    extended: str = "base",
) -> Verdict:
    tables = map(ResultTable.from_rows, (read, keys or [], asked or [], far_context(GAINS) if far is None else far))
    perplexity_table, passkey, needle, far_table = tables
    return Verdict.of(perplexity_table, passkey, needle, far_table, window=WINDOW, extended=extended)


def test_it_reads_as_far_as_perplexity_and_the_gain_of_the_far_text_both_hold() -> None:
    assert verdict(perplexity(PERPLEXITY)).reads_to == 2048
    assert verdict(perplexity(PERPLEXITY), far=far_context(GAINS | {1024: -0.01})).reads_to == 512
    assert verdict(perplexity(PERPLEXITY | {512: 12.5})).reads_to == WINDOW
    # An interval that holds zero is no gain, however large its middle.
    assert verdict(perplexity(PERPLEXITY), far=far_context(GAINS, low=-0.001)).reads_to == WINDOW
    assert verdict(perplexity(PERPLEXITY), far=far_context(GAINS, low=0.001)).reads_to == 2048


def test_what_was_not_measured_is_not_judged() -> None:
    assert verdict(perplexity(PERPLEXITY, inside=None)).reads_to is None
    assert verdict(perplexity({256: 12.0})).reads_to is None
    nothing = verdict(perplexity(PERPLEXITY), far=[])
    assert (nothing.works_to, nothing.to_json()["sentences"]) == (None, [])
    assert nothing.lengths == {}


def test_it_retrieves_as_far_as_it_keeps_what_the_base_model_answers_inside_its_window() -> None:
    judged = verdict(perplexity(PERPLEXITY), passkeys({512: 10, 1024: 9, 2048: 8}))
    assert (judged.reads_to, judged.retrieves_to, judged.works_to) == (2048, 1024, 1024)
    # 7 of 10 is at least nine tenths of 7 of 10.
    assert verdict(perplexity(PERPLEXITY), passkeys({1024: 7}, inside=7)).retrieves_to == 1024
    assert verdict(perplexity(PERPLEXITY), passkeys({1024: 10, 4096: 10})).works_to == 2048


def test_the_tasks_are_averaged_and_none_makes_up_for_another_by_gaining() -> None:
    asked = needles("multi_key", {1024: 0.6}, inside=0.8)
    judged = verdict(perplexity(PERPLEXITY), passkeys({1024: 10}, inside=10), asked)
    assert [task.kept for task in judged.answers[1024]] == [1.0, pytest.approx(0.75)]
    assert judged.retrieves_to == WINDOW
    gained = verdict(perplexity(PERPLEXITY), passkeys({1024: 10}, inside=5), asked)
    assert gained.retrieves_to == WINDOW
    assert (
        verdict(perplexity(PERPLEXITY), passkeys({1024: 10}), needles("single", {1024: 0.8}, inside=1)).works_to == 1024
    )


def test_a_task_that_the_base_model_fails_says_nothing_and_is_named() -> None:
    asked = needles("variable_tracking", {1024: 0.0}, inside=0.1)
    judged = verdict(perplexity(PERPLEXITY), passkeys({1024: 10}), asked)
    assert (judged.retrieves_to, judged.left_out) == (1024, {"variable_tracking": 0.1})
    assert judged.to_json()["sentences"][-1] == (
        "Not counted are tasks of which the base model answers less than half inside its window: "
        "variable tracking 10 %."
    )
    none = verdict(perplexity(PERPLEXITY), passkeys({1024: 10}, inside=2))
    assert (none.retrieves_to, none.works_to) == (None, 2048)
    assert none.to_json()["sentences"][-1].startswith("How far it retrieves cannot be told from tasks")
    assert "passkey 20 %" in none.to_json()["sentences"][-1]


def test_the_sentences_say_the_lengths_and_the_thresholds() -> None:
    sentences = verdict(perplexity(PERPLEXITY), passkeys({512: 10, 1024: 9, 2048: 8})).to_json()["sentences"]
    assert sentences[0] == "Works to 1,024 tokens, 4 times its window of 256."
    assert sentences[1].startswith("It reads to 2,048 tokens: up to there the perplexity is not above")
    assert sentences[1].endswith("than with the last 256 tokens of it, at 2,048 tokens by 0.040 nats a token.")
    assert sentences[2] == (
        "It retrieves to 1,024 tokens: up to there it gives at least 90 % of the answers that the base model gives "
        "inside its window, as the mean over the tasks (at 1,024 tokens passkey 90 % (base model inside 100 %); at "
        "2,048 tokens passkey 80 % (base model inside 100 %))."
    )
    short = verdict(perplexity(PERPLEXITY | {512: 13.0}), passkeys({512: 1})).to_json()["sentences"]
    assert short[0] == "Works to no measured length beyond its window of 256 tokens."
    assert short[2].startswith("It retrieves no further than its window")


def test_the_fine_tuned_model_is_judged_where_there_is_one() -> None:
    read = [*perplexity(PERPLEXITY), *perplexity({512: 5.0, 4096: 5.0}, inside=None, model="finetuned")]
    keys = [*passkeys({512: 0, 4096: 0}), *passkeys({512: 10, 4096: 10}, inside=None, model="finetuned")]
    far = far_context({512: 0.1, 4096: 0.2}, model="finetuned")
    assert verdict(read, keys, far=far, extended="finetuned").works_to == 4096
