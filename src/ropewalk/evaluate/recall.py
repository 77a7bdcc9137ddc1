"""Scores on needle prompts: what greedy decoding writes, and whether the right answer is the likeliest of several."""

import math
import re
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

from ropewalk.evaluate.prompts import PASSKEY_FORMS, Prompt, Prompts
from ropewalk.models.continuation import ReadPrompt, forced_likelihoods
from ropewalk.rope import LengthSwitch, extend

PROTOCOL = (
    "greedy decoding, share of the answers in the decoded text (accuracy); log probability of the right answer above "
    "all distractors' (likelihood_accuracy, against chance); prompts at exact token lengths; numbers not in training"
)


def answered(text: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in ``text`` as whole words or numbers (RULER's ``string_match_all``)."""
    words = set(re.findall(r"[0-9]+|[A-Za-z]+", text))
    return sum(answer in words for answer in answers) / len(answers)


def says_key(tokenizer: Any, read: ReadPrompt, prompt: Prompt) -> bool:
    """Whether the text that greedy decoding writes begins with the key, in whatever tokens."""
    expected = tokenizer.decode(prompt.right[0]).strip()
    ids: list[int] = []
    with closing(read.greedy(prompt.decode_tokens)) as decoded:
        for token in decoded:
            ids.append(token)
            written = tokenizer.decode(ids).strip()
            if written.startswith(expected):
                return True
            # Bytes of a character that is not complete yet are shown as a replacement.
            if not expected.startswith(written.rstrip("\ufffd")):
                return False
    return False


def decoded_share(tokenizer: Any, read: ReadPrompt, prompt: Prompt, *, family: str) -> float:
    """Share of the answers in what greedy decoding writes; a passkey is right where the text begins with it."""
    if family in PASSKEY_FORMS:
        return float(says_key(tokenizer, read, prompt))
    text = tokenizer.decode(list(read.greedy(prompt.decode_tokens, stop=tokenizer.eos_token_id)))
    return answered(text, prompt.answers)


def is_likeliest(read: ReadPrompt, prompt: Prompt) -> bool:
    """Whether a right answer is more likely than all the wrong ones."""
    best = max(read.log_likelihood(list(ids)) for ids in prompt.right)
    return all(read.log_likelihood(list(ids)) < best for ids in prompt.wrong)


def read_prompt(model: Any, ids: Sequence[int], prompt: Prompt, *, chunk: int) -> ReadPrompt:
    """Read ``ids`` with room for decoding an answer and for every continuation of ``prompt``."""
    longest = max(map(len, (*prompt.right, *prompt.wrong)))
    return ReadPrompt(model, list(ids), room=max(prompt.decode_tokens, longest), chunk=chunk)


def scores(model: Any, tokenizer: Any, family: str, prompt: Prompt, *, chunk: int) -> tuple[float, bool, bool]:
    """(share of the answers decoded, whether a right one is the likeliest, whether the logits are NaN).

    A passkey in a prompt of more than ``chunk`` tokens is not decoded (`ropewalk.evaluate.passkey.FORCED_PROTOCOL`).
    """
    if family in PASSKEY_FORMS and len(prompt.ids) + len(prompt.right[0]) > chunk:
        key, *others = forced_likelihoods(model, prompt.ids, [prompt.right[0], *prompt.wrong], chunk=chunk)
        if math.isnan(key.log_likelihood):
            return 0.0, False, True
        is_likely = all(other.log_likelihood < key.log_likelihood for other in others)
        return float(key.is_greedy), is_likely, False
    read = read_prompt(model, prompt.ids, prompt, chunk=chunk)
    if read.is_nan:
        return 0.0, False, True
    return decoded_share(tokenizer, read, prompt, family=family), is_likeliest(read, prompt), False


def recall_rows(
    model: Any, tokenizer: Any, switch: LengthSwitch, prompts: Prompts, *, chunk: int
) -> list[dict[str, Any]]:
    """A row per depth under the switch's scaling for the prompts' length; see `PROTOCOL`.

    ``nan`` counts the prompts at whose end the logits are NaN; they count as wrong answers.
    """
    extend(model, switch.for_length(prompts.length))
    rows = []
    for depth, group in groupby(prompts.prompts, lambda prompt: prompt.depth):
        asked = list(group)
        trials = [scores(model, tokenizer, prompts.family, prompt, chunk=chunk) for prompt in asked]
        shares, likely, nans = (sum(column) for column in zip(*trials, strict=True))
        rows.append(
            {
                "family": prompts.family,
                "length": prompts.length,
                "depth": "" if depth is None else depth,
                "trials": len(trials),
                "accuracy": shares / len(trials),
                "likelihood_accuracy": likely / len(trials),
                "chance": sum(prompt.chance for prompt in asked) / len(trials),
                "nan": nans,
                "protocol": PROTOCOL,
            }
        )
    return rows
