"""Passkey retrieval: a five-digit key somewhere in a long filler text, asked for at the end (paper §4.3).

Keys are those that no recall document holds (`ropewalk.corpus.recall.is_held_out_key`), and the
wording occurs in none of them.
"""

from itertools import groupby
from typing import Any

import numpy as np
import torch

from ropewalk.evaluate.perplexity import TOKENS_AT_ONCE
from ropewalk.evaluate.prompts import Prompt, Prompts, common_start, draw_key, encode, first_id
from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.head import logits_of
from ropewalk.models.loss import last_states
from ropewalk.rope import LengthSwitch, extend

PROTOCOL = "greedy decoding, exact match of five digits; keys and wording not in training"
_TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n"
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_KEY = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"


def passkey_prompts(tokenizer: Any, *, length: int, depths: int, trials: int, seed: int) -> Prompts:
    """``trials`` prompts spread over ``depths`` depths from the filler's start to its end, at least one at each.

    Raises:
        ValueError: the task and its question alone are longer than ``length``.
    """
    rng = np.random.default_rng((seed, length))
    prompts: list[Prompt] = []
    for depth in np.linspace(0, 1, depths).tolist():
        keys = [draw_key(rng) for _ in range(max(1, trials // depths))]
        prompts += [passkey_prompt(tokenizer, key=key, length=length, depth=depth) for key in keys]
    return Prompts("passkey", length, tuple(prompts))


def passkey_prompt(tokenizer: Any, *, key: int, length: int, depth: float) -> Prompt:
    """A prompt that has exactly ``length`` token ids together with its answer, BOS first.

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
    return Prompt(
        depth=depth,
        asked=QUESTION.strip(),
        answers=(str(key),),
        right=(tuple(answer),),
        wrong=(),
        # The longest way to write the key is a token for each digit and one for the space before them.
        decode_tokens=len(tokenizer.decode(answer).strip()) + 1,
        question_tokens=asked,
        ids=(first_id(tokenizer), *task, *filler[:place], *statement, *filler[place:], *question),
    )


@torch.no_grad()
def passkey_accuracy(
    model: Any, tokenizer: Any, switch: LengthSwitch, prompts: Prompts, *, chunk: int = TOKENS_AT_ONCE
) -> list[dict[str, Any]]:
    """A row {length, depth, trials, correct, nan} per depth, under the switch's scaling for the prompts' length.

    Greedy decoding gives the key exactly when the most likely token is right at each of its places
    given the places before, so one pass over prompt and answer decides a trial; where a tokenizer has other tokens
    for the same digits and one of them is the most likely, the key is decoded and its text compared.
    ``nan`` counts the trials in which the model gave no numbers.
    """
    length = prompts.length
    extend(model, switch.for_length(length))
    device = next(model.parameters()).device
    rows = []
    at_once = max(1, chunk // length)
    for depth, group in groupby(prompts.prompts, lambda prompt: prompt.depth):
        of_depth = list(group)
        correct = nan = 0
        for first in range(0, len(of_depth), at_once):
            batch = of_depth[first : first + at_once]
            ids = torch.tensor([[*prompt.ids, *prompt.right[0]] for prompt in batch], device=device)
            longest = max(len(prompt.right[0]) for prompt in batch)
            states = last_states(model, ids, longest + 1, chunk=chunk)
            for state, row, prompt in zip(states, ids, batch, strict=True):
                count = len(prompt.right[0])
                logits = logits_of(model, state[None, -count - 1 : -1])[0]
                nan += bool(logits.isnan().any())
                best = logits.argmax(-1)
                correct += bool((best == row[-count:]).all()) or _says_otherwise(
                    model, tokenizer, prompt, best.tolist(), chunk=chunk
                )
        counts = {"trials": len(of_depth), "correct": correct, "nan": nan}
        rows.append({"length": length, "depth": round(depth or 0.0, 4), **counts})
    return rows


def _says_otherwise(model: Any, tokenizer: Any, prompt: Prompt, best: list[int], *, chunk: int) -> bool:
    """Whether greedy decoding writes the answer with other tokens than the tokenizer's own."""
    answer = prompt.right[0]
    wrong = next(place for place, (likeliest, right) in enumerate(zip(best, answer, strict=True)) if likeliest != right)
    start = tokenizer.decode([*answer[:wrong], best[wrong]]).strip()
    if not start or not tokenizer.decode(answer).strip().startswith(start):
        return False
    return says_key(tokenizer, ReadPrompt(model, list(prompt.ids), room=prompt.decode_tokens, chunk=chunk), prompt)


def says_key(tokenizer: Any, read: ReadPrompt, prompt: Prompt) -> bool:
    """Whether the text that greedy decoding writes begins with the key."""
    expected = tokenizer.decode(prompt.right[0]).strip()
    written = tokenizer.decode(read.greedy(prompt.decode_tokens)).strip()
    return bool(written[: len(expected)] == expected)
