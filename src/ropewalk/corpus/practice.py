"""Practice rows: what a model trained from nothing learns to look back from, long before text alone teaches it.

First short stretches of digits over and over, then long ones, then lists of named values. Each lesson builds
on the last: on a whole vocabulary, or from recall documents alone, nothing was learned in ten times as long.
"""

from typing import Any

import numpy as np

from ropewalk.corpus.recall import draw_facts

_ENTRIES = ("{Thing}: {value}\n", "{name} = {value}\n", "The {thing} is {value}. ", "{thing} {value}, ")


def practice_row(
    rng: np.random.Generator, *, step: int, practice_steps: int, length: int, tokenizer: Any
) -> list[int] | None:
    """A practice row of ``length`` token ids, or None where this step's lesson leaves the row to text.

    Args:
        practice_steps: steps over which copies fall from all rows to a tenth. After a third more, lists begin
            with six rows of ten and fall by three of ten in as many steps, to a tenth.
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
    """Blocks of four times ``longest`` tokens, each 4 to ``longest`` random pairs of digits over and over."""
    pairs = tokenizer([f"{pair:02d}" for pair in range(100)], add_special_tokens=False)["input_ids"]
    row: list[int] = []
    while len(row) < length:
        stretch = [token for pair in rng.integers(0, 100, int(rng.integers(4, longest + 1))) for token in pairs[pair]]
        row += np.resize(stretch, 4 * longest).tolist()
    return row[:length]


def list_row(rng: np.random.Generator, *, length: int, tokenizer: Any) -> list[int]:
    """One to eight named values in one wording, drawn again and again until the row is full."""
    entry = str(rng.choice(_ENTRIES))
    texts = [entry.format(**fact) for fact in draw_facts(rng, int(rng.integers(1, 9)))]
    entries = tokenizer(texts, add_special_tokens=False)["input_ids"]
    row: list[int] = []
    while len(row) < length:
        row += entries[int(rng.integers(len(entries)))]
    return row[:length]
