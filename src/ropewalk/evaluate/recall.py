"""Scores on needle prompts: what greedy decoding writes, and whether the right answer is the likeliest of several."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ropewalk.evaluate.needles import NeedlePrompt
from ropewalk.models.continuation import ReadPrompt
from ropewalk.rope import LengthSwitch, extend, scaling_for_length

PROTOCOL = (
    "greedy decoding, share of the answers in the decoded text (accuracy); log probability of the right answer above "
    "all distractors' (likelihood_accuracy, against chance); prompts at exact token lengths; numbers not in training"
)


def answered(text: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in ``text`` as whole words or numbers (RULER's ``string_match_all``)."""
    words = set(re.findall(r"[0-9]+|[A-Za-z]+", text))
    return sum(answer in words for answer in answers) / len(answers)


def recall_rows(
    model: Any, tokenizer: Any, switch: LengthSwitch, prompts: Sequence[NeedlePrompt], *, length: int, chunk: int
) -> list[dict[str, Any]]:
    """A row per depth under the switch's scaling for ``length``; see `PROTOCOL`.

    ``nan`` counts the prompts at whose end the model gave no numbers; they are wrong answers.
    """
    extend(model, scaling_for_length(switch, length))
    by_depth: dict[tuple[str, float | None], list[tuple[NeedlePrompt, float, bool, bool]]] = defaultdict(list)
    for prompt in prompts:
        longest = max(map(len, (*prompt.right, *prompt.wrong)))
        read = ReadPrompt(model, list(prompt.ids), room=max(prompt.decode_tokens, longest), chunk=chunk)
        share, likely, nan = 0.0, False, read.is_nan
        if not nan:
            text = tokenizer.decode(read.greedy(prompt.decode_tokens, stop=tokenizer.eos_token_id))
            share = answered(text, prompt.answers)
            right, wrong = ([read.log_likelihood(list(ids)) for ids in side] for side in (prompt.right, prompt.wrong))
            likely = max(right) > max(wrong)
        by_depth[prompt.family, prompt.depth].append((prompt, share, likely, nan))
    return [
        {
            "family": family,
            "length": length,
            "depth": "" if depth is None else depth,
            "trials": len(found),
            "accuracy": sum(share for _, share, _, _ in found) / len(found),
            "likelihood_accuracy": sum(likely for _, _, likely, _ in found) / len(found),
            "chance": sum(prompt.chance for prompt, *_ in found) / len(found),
            "nan": sum(nan for *_, nan in found),
            "protocol": PROTOCOL,
        }
        for (family, depth), found in by_depth.items()
    ]
