"""Practice rows: synthetic rows from which a model learns to look back, long before text alone teaches it.

They are short sequences of digits repeated many times, then long ones, then lists of named values. Each step builds on
the one before. A model trained from scratch with sequences from the whole vocabulary, or with recall
documents alone, learned nothing in ten times as many steps.
"""

from typing import Any

import numpy as np

from ropewalk.corpus.recall import draw_facts

_ENTRIES = ("{Thing}: {value}\n", "{name} = {value}\n", "The {thing} is {value}. ", "{thing} {value}, ")


def practice_row(
    rng: np.random.Generator, *, step: int, practice_steps: int, length: int, tokenizer: Any
) -> list[int] | None:
    """A practice row of ``length`` token ids, or None if the row shall hold text.

    Args:
        practice_steps: number of steps in which the share of copies falls from 1 to 0.1. From 4/3 times this step on
            there are lists; their share begins at 0.6 and falls by 0.3 in as many steps, down to 0.1.
    """
    time = step / practice_steps
    copies = max(0.1, 1 - time)
    lists = max(0.1, 0.6 - 0.3 * (time - 4 / 3)) if 3 * step >= 4 * practice_steps else 0.0
    draw = rng.random()
    if draw < copies:
        longest = 16 if 3 * step < 2 * practice_steps else max(16, length // 2 - 7)
        return copy_row(rng, length=length, longest=longest, tokenizer=tokenizer)
    return list_row(rng, length=length, tokenizer=tokenizer) if draw < copies + lists else None


def copy_row(rng: np.random.Generator, *, length: int, longest: int, tokenizer: Any) -> list[int]:
    """Blocks of four times ``longest`` tokens, each a repetition of 4 to ``longest`` random pairs of digits."""
    pairs = tokenizer([f"{pair:02d}" for pair in range(100)], add_special_tokens=False)["input_ids"]
    row: list[int] = []
    while len(row) < length:
        sequence = [token for pair in rng.integers(0, 100, int(rng.integers(4, longest + 1))) for token in pairs[pair]]
        row += np.resize(sequence, 4 * longest).tolist()
    return row[:length]


def list_row(rng: np.random.Generator, *, length: int, tokenizer: Any) -> list[int]:
    """One to eight named values in one wording, drawn with replacement until the row is full."""
    entry = str(rng.choice(_ENTRIES))
    texts = [entry.format(**fact) for fact in draw_facts(rng, int(rng.integers(1, 9)))]
    entries = tokenizer(texts, add_special_tokens=False)["input_ids"]
    row: list[int] = []
    while len(row) < length:
        row += entries[int(rng.integers(len(entries)))]
    return row[:length]
