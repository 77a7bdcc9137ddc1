"""Needles: facts hidden in long documents and repeated at their end, for a fitness that asks for looking far back.

LongRoPE2 (§3.1) judges factors by the loss on answers alone, since most tokens of a text can be told from the few
before them, whatever the factors.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.corpus.recall import draw_facts

_STATEMENT = "\nThe {thing} is {value}.\n"
_QUESTION = "\nOnce more, the {thing} is"


def needle_rows(rows: Tensor, tokenizer: Any, *, needles: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows as long as ``rows`` (documents, length), the last documents' tokens giving way to facts and questions.

    The facts stand at evenly spread depths of the first half, so that every answer lies at least as far back as
    half of the document.

    Returns:
        (rows, asked): asked (documents, length) is true on the tokens of the answers.

    Raises:
        ValueError: the facts and questions take more than half of a row.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    documents, length = rows.shape
    made, asked = rows.clone(), torch.zeros_like(rows, dtype=torch.bool)
    for document in range(documents):
        rng = np.random.default_rng((seed, document))
        facts = list(draw_facts(rng, needles))
        statements = [encode(_STATEMENT.format(**fact)) for fact in facts]
        ends: list[int] = []
        answers: list[bool] = []
        for fact in rng.permutation(np.asarray(facts, dtype=object)):
            question = encode(_QUESTION.format(**fact))
            whole = encode(_QUESTION.format(**fact) + f" {fact['value']}")
            # Where the value's first token is not one of its own, the common beginning is the question.
            begun = next((i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b), len(question))
            ends += whole
            answers += [place >= begun for place in range(len(whole))]
        room = length - len(ends) - sum(map(len, statements))
        if room < length // 2:
            raise ValueError(
                f"search.fitness.needles: {needles} facts and their questions take {length - room} of {length} tokens; "
                "lower it or search for a longer target"
            )
        text = rows[document, :room].tolist()
        row: list[int] = []
        start = 0
        for number, statement in enumerate(statements):
            place = max(1, round(number / needles * length / 2))
            row += text[start:place] + statement
            start = place
        row += text[start:]
        made[document] = torch.tensor(row + ends)
        asked[document, len(row) :] = torch.tensor(answers)
    return made, asked
