"""Scores on needle prompts: what greedy decoding writes, and whether the right answer is the likeliest of several."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ropewalk.evaluate.passkey import says_key
from ropewalk.evaluate.prompts import Prompt, Prompts
from ropewalk.models.continuation import ReadPrompt
from ropewalk.rope import LengthSwitch, extend

PROTOCOL = (
    "greedy decoding, share of the answers in the decoded text (accuracy); log probability of the right answer above "
    "all distractors' (likelihood_accuracy, against chance); prompts at exact token lengths; numbers not in training"
)


def answered(text: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in ``text`` as whole words or numbers (RULER's ``string_match_all``)."""
    words = set(re.findall(r"[0-9]+|[A-Za-z]+", text))
    return sum(answer in words for answer in answers) / len(answers)


def decoded_share(tokenizer: Any, read: ReadPrompt, prompt: Prompt, *, family: str) -> float:
    """Share of the answers in what greedy decoding writes; a passkey is right where the text begins with it."""
    if family == "passkey":
        return float(says_key(tokenizer, read, prompt))
    text = tokenizer.decode(read.greedy(prompt.decode_tokens, stop=tokenizer.eos_token_id))
    return answered(text, prompt.answers)


def is_likeliest(read: ReadPrompt, prompt: Prompt) -> bool:
    """Whether a right answer is more likely than all the wrong ones."""
    right, wrong = ([read.log_likelihood(list(ids)) for ids in side] for side in (prompt.right, prompt.wrong))
    return max(right) > max(wrong)


def read_prompt(model: Any, ids: Sequence[int], prompt: Prompt, *, chunk: int) -> ReadPrompt:
    """``ids`` with room for all that is asked of the prompt."""
    longest = max(map(len, (*prompt.right, *prompt.wrong)))
    return ReadPrompt(model, list(ids), room=max(prompt.decode_tokens, longest), chunk=chunk)


def recall_rows(
    model: Any, tokenizer: Any, switch: LengthSwitch, prompts: Prompts, *, chunk: int
) -> list[dict[str, Any]]:
    """A row per depth under the switch's scaling for the prompts' length; see `PROTOCOL`.

    ``nan`` counts the prompts at whose end the model gave no numbers; they are wrong answers.
    """
    extend(model, switch.for_length(prompts.length))
    rows = []
    for depth, of_depth in groupby(prompts.prompts, lambda prompt: prompt.depth):
        scores = []
        for prompt in of_depth:
            read = read_prompt(model, prompt.ids, prompt, chunk=chunk)
            nan = read.is_nan
            share = 0.0 if nan else decoded_share(tokenizer, read, prompt, family=prompts.family)
            scores.append((share, not nan and is_likeliest(read, prompt), prompt.chance, nan))
        shares, likely, chances, nans = (sum(column) for column in zip(*scores, strict=True))
        rows.append(
            {
                "family": prompts.family,
                "length": prompts.length,
                "depth": "" if depth is None else depth,
                "trials": len(scores),
                "accuracy": shares / len(scores),
                "likelihood_accuracy": likely / len(scores),
                "chance": chances / len(scores),
                "nan": nans,
                "protocol": PROTOCOL,
            }
        )
    return rows
