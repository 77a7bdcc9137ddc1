"""Passkey retrieval: a five-digit key somewhere in a long filler text, asked for at the end (paper §4.3).

Keys are those that no recall document holds (`ropewalk.corpus.recall.is_held_out_key`), and the
wording occurs in none of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ropewalk.corpus.recall import is_held_out_key
from ropewalk.models.loss import hidden_states
from ropewalk.rope import LengthSwitch, extend, scaling_for_length

PROTOCOL = "greedy decoding, exact match of five digits; keys and wording not in training"
_TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n"
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_KEY = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
_QUESTION = "\nWhat is the pass key? The pass key is"
_TOKENS_AT_ONCE = 16_384


def passkey_row(tokenizer: Any, *, key: int, length: int, depth: float) -> tuple[list[int], int]:
    """(token ids of prompt and answer, count of answer tokens): exactly ``length`` ids, BOS first.

    Args:
        depth: where in the filler the key stands, 0 for its start and 1 for its end.

    Raises:
        ValueError: the question alone is longer than ``length``.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    question, whole = encode(_QUESTION), encode(f"{_QUESTION} {key}")
    if whole[: len(question)] != question:
        question = whole[: next(i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b)]
    answer = whole[len(question) :]
    task, statement, sentence = encode(_TASK), encode(_KEY.format(key=key)), encode(_FILLER)
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    room = length - 1 - len(task) - len(statement) - len(whole)
    if room < 0:
        raise ValueError(f"a passkey prompt needs {length - room} tokens with this tokenizer, found length {length}")
    filler = (sentence * (room // len(sentence) + 1))[:room]
    place = round(depth * room)
    return [bos, *task, *filler[:place], *statement, *filler[place:], *question, *answer], len(answer)


@torch.no_grad()
def passkey_accuracy(
    model: Any, tokenizer: Any, switch: LengthSwitch, *, length: int, depths: int, trials: int, seed: int
) -> list[dict[str, Any]]:
    """A row {length, depth, trials, correct} per depth, under the switch's scaling for ``length``.

    Greedy decoding gives the key exactly when the most likely token is right at each of its places
    given the places before, so one pass over prompt and answer decides a trial.
    """
    extend(model, scaling_for_length(switch, length))
    rng = np.random.default_rng((seed, length))
    output = model.get_output_embeddings()
    device = next(model.parameters()).device
    rows = []
    for depth in np.linspace(0, 1, depths).tolist():
        made = [
            passkey_row(tokenizer, key=_draw_key(rng), length=length, depth=depth)
            for _ in range(max(1, trials // depths))
        ]
        correct = 0
        for first in range(0, len(made), max(1, _TOKENS_AT_ONCE // length)):
            batch = made[first : first + max(1, _TOKENS_AT_ONCE // length)]
            ids = torch.tensor([row for row, _ in batch], device=device)
            states = hidden_states(model, ids)
            for state, row, (_, count) in zip(states, ids, batch, strict=True):
                best = output(state[-count - 1 : -1]).argmax(-1)
                correct += bool((best == row[-count:]).all())
        rows.append({"length": length, "depth": round(depth, 4), "trials": len(made), "correct": correct})
    return rows


def _draw_key(rng: np.random.Generator) -> int:
    while True:
        key = int(rng.integers(10_000, 100_000))
        if is_held_out_key(key):
            return key


def accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """Share of correct trials over all depths."""
    trials: int = sum(row["trials"] for row in rows)
    correct: int = sum(row["correct"] for row in rows)
    return correct / trials
