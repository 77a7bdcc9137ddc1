"""Made-up words for prompts that are lists of words, and how often each word occurs in a list of a given size."""

from collections.abc import Mapping, Sequence
from math import isqrt, pi

import numpy as np

from ropewalk.evaluate.prompts import OTHERS

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
_RATIO = 10
ASKED_CODES = 3
"""Coded words of a text that are asked for: those of the ranks after the noise."""


def draw_words(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` pronounceable words of three syllables, none twice; a smaller count gives the first of the same."""
    base, numbers = len(_SYLLABLES), dict[int, None]()
    while len(numbers) < count:
        numbers |= dict.fromkeys(rng.integers(base**3, size=count).tolist())
    first = list(numbers)[:count]
    return ["".join(_SYLLABLES[number // base**place % base] for place in range(3)) for number in first]


def draw_codes(rng: np.random.Generator, count: int, *, alphabet: str, letters: int) -> list[str]:
    """``count`` strings of ``letters`` letters, none twice; a smaller count gives the first of the same."""
    choices = np.array(list(alphabet))
    codes: list[str] = []
    while len(codes) < count:
        if (code := "".join(rng.choice(choices, letters))) not in codes:
            codes.append(code)
    return codes


def shuffled(rng: np.random.Generator, counts: Mapping[str, int]) -> list[str]:
    """Every word as often as ``counts`` says, in random order."""
    words = [word for word, count in counts.items() for _ in range(count)]
    return [words[place] for place in rng.permutation(len(words)).tolist()]


def numbered(words: Sequence[str], *, start: int = 1) -> str:
    """The words on one line, each after its number."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start))


def common_counts(words: int) -> tuple[list[int], list[int]]:
    """How often each common and each other word occurs in a list of about ``words`` words.

    From 600 words on, ten words occur 30 times and all others 3 times, as in RULER; a longer list has more other words.
    From 400 words on they occur 20 and 2 times, from 200 on 10 times and once. Of fewer than 200 words one of twenty
    is common, two at least, and of fewer than 40 these two take half of the list, so that they are less than ten times
    as frequent as the others. There are never fewer than 7 others, so the shortest list has 11 words.
    """
    other_times = min(max(words // 200, 1), 3)
    common = min(max(words // 20, 2), 10)
    times = min(_RATIO * other_times, max(words // (2 * common), 2))
    return [times] * common, [other_times] * max((words - common * times) // other_times, OTHERS)


def zeta_counts(words: int) -> list[int]:
    """How often the noise, which has rank 1, and each coded word occur in a text of about ``words`` words.

    Rank k occurs words / (ζ(2) k²) times, rounded down (RULER's alpha = 2); words that would not occur are left out. In
    a text too short for that, the `ASKED_CODES` words after the noise still occur once more often than the next, and
    the 7 words after these occur once.
    """
    ranks = range(1, max(isqrt(words), 1 + ASKED_CODES + OTHERS) + 1)
    noise, *coded = [int(words * 6 / (pi * rank) ** 2) for rank in ranks]
    rarer = [max(count, 1) for count in coded[ASKED_CODES : ASKED_CODES + OTHERS]]
    rarer += [count for count in coded[ASKED_CODES + OTHERS :] if count]
    return [noise, *(max(count, rarer[0] + 1) for count in coded[:ASKED_CODES]), *rarer]
