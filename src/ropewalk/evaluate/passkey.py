"""Passkey retrieval: a five-digit key somewhere in a long filler text, asked for at the end (paper §4.3).

Keys are those that no recall document holds (`ropewalk.corpus.recall.is_held_out_key`), and the
wording occurs in none of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ropewalk.corpus.recall import is_held_out_key
from ropewalk.evaluate.prompts import common_start, encode, first_id
from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.loss import last_states
from ropewalk.rope import LengthSwitch, extend, scaling_for_length

PROTOCOL = "greedy decoding, exact match of five digits; keys and wording not in training"
_TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n"
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_KEY = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
_TOKENS_AT_ONCE = 16_384


def passkey_row(tokenizer: Any, *, key: int, length: int, depth: float) -> tuple[list[int], int]:
    """(token ids of prompt and answer, count of answer tokens): exactly ``length`` ids, BOS first.

    Args:
        depth: where in the filler the key stands, 0 for its start and 1 for its end.

    Raises:
        ValueError: the question alone is longer than ``length``.
    """
    whole = encode(tokenizer, f"{QUESTION} {key}")
    asked = common_start(encode(tokenizer, QUESTION), whole)
    question, answer = whole[:asked], whole[asked:]
    task, statement, sentence = (encode(tokenizer, text) for text in (_TASK, _KEY.format(key=key), _FILLER))
    room = length - 1 - len(task) - len(statement) - len(whole)
    if room < 0:
        raise ValueError(f"a passkey prompt needs {length - room} tokens with this tokenizer, found length {length}")
    filler = (sentence * (room // len(sentence) + 1))[:room]
    place = round(depth * room)
    return [first_id(tokenizer), *task, *filler[:place], *statement, *filler[place:], *question, *answer], len(answer)


@torch.no_grad()
def passkey_accuracy(
    model: Any,
    tokenizer: Any,
    switch: LengthSwitch,
    *,
    length: int,
    depths: int,
    trials: int,
    seed: int,
    chunk: int = _TOKENS_AT_ONCE,
) -> list[dict[str, Any]]:
    """A row {length, depth, trials, correct, nan} per depth, under the switch's scaling for ``length``.

    Greedy decoding gives the key exactly when the most likely token is right at each of its places
    given the places before, so one pass over prompt and answer decides a trial; where a tokenizer has other tokens
    for the same digits and one of them is the most likely, the key is decoded and its text compared.
    ``nan`` counts the trials in which the model gave no numbers.
    """
    extend(model, scaling_for_length(switch, length))
    rng = np.random.default_rng((seed, length))
    output = model.get_output_embeddings()
    device = next(model.parameters()).device
    rows = []
    for depth in np.linspace(0, 1, depths).tolist():
        keys = [draw_key(rng) for _ in range(max(1, trials // depths))]
        made = [passkey_row(tokenizer, key=key, length=length, depth=depth) for key in keys]
        correct = nan = 0
        at_once = max(1, chunk // length)
        for first in range(0, len(made), at_once):
            batch = made[first : first + at_once]
            ids = torch.tensor([row for row, _ in batch], device=device)
            longest = max(count for _, count in batch)
            states = last_states(model, ids, longest + 1, chunk=chunk)
            for state, row, (_, count) in zip(states, ids, batch, strict=True):
                logits = output(state[-count - 1 : -1])
                nan += bool(logits.isnan().any())
                right = logits.argmax(-1) == row[-count:]
                correct += bool(right.all()) or _says_otherwise(
                    model, tokenizer, row.tolist(), count, right.tolist(), logits.argmax(-1).tolist(), chunk=chunk
                )
        found = {"length": length, "depth": round(depth, 4), "trials": len(made), "correct": correct}
        rows.append({**found, "nan": nan})
    return rows


def _says_otherwise(
    model: Any, tokenizer: Any, row: list[int], count: int, right: list[bool], best: list[int], *, chunk: int
) -> bool:
    """Whether greedy decoding writes the answer with other tokens than the tokenizer's own."""
    wrong = right.index(False)
    expected = tokenizer.decode(row[-count:]).strip()
    begun = tokenizer.decode([*row[-count:][:wrong], best[wrong]]).strip()
    if not begun or not expected.startswith(begun):
        return False
    # A letter a token, and a space before them, is the longest way to write it.
    room = len(expected) + 1
    written = ReadPrompt(model, row[:-count], room=room, chunk=chunk).greedy(room)
    return bool(tokenizer.decode(written).strip()[: len(expected)] == expected)


def draw_key(rng: np.random.Generator) -> int:
    """A number of five digits that no recall document holds."""
    while True:
        key = int(rng.integers(10_000, 100_000))
        if is_held_out_key(key):
            return key


def accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """Share of correct trials over all depths."""
    trials: int = sum(row["trials"] for row in rows)
    correct: int = sum(row["correct"] for row in rows)
    return correct / trials
