"""Needle families: RULER's tasks for base models (arXiv 2404.06654), as text.

`FAMILIES` holds the families. Their numbers are held out of the recall documents, as the passkey task's are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from string import ascii_lowercase, ascii_uppercase

import numpy as np

from ropewalk.evaluate.prompts import OTHERS, draw_key
from ropewalk.evaluate.word_lists import (
    ASKED_CODES,
    common_counts,
    draw_codes,
    draw_words,
    numbered,
    shuffled,
    zeta_counts,
)
from ropewalk.registry import Registry

SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "

_TASK = "Some special magic numbers are hidden within the following text. Memorize them; they are asked for later.\n"
_NEEDLE = "\nOne of the special magic numbers for {name} is: {value}.\n"
_ASK_ONE = (
    "\nWhat is the special magic number for {name} mentioned in the provided text? "
    "The special magic number for {name} mentioned in the provided text is"
)
_ASK_ALL = (
    "\nWhat are all the special magic numbers for {name} mentioned in the provided text? "
    "The special magic numbers for {name} mentioned in the provided text are"
)
_TRACK = "Memorize and track the chains of variable assignment hidden in the following text.\n"
_ASK_CHAIN = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
    "chains of variable assignment in the text above, {count} variables are assigned the value {value}, they are:"
)
_COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_ASK_COMMON = (
    "\nQuestion: What are the {count} most common words in the above list? Answer: The top {count} words that appear "
    "most often in the list are:"
)
_FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words.\n"
)
_ASK_FREQUENT = (
    "\nQuestion: Please ignore the dots. What are the three most frequently appeared words in the above coded text? "
    "Answer: The three most frequently appeared words are:"
)
_DOTS = "..."
_NAMES = tuple(
    f"{adjective}-{noun}"
    for adjective in "amber brave crisp dusty eager faint gentle hollow icy jolly keen lively mellow noble".split()
    for noun in "anchor badger candle dragon emblem falcon garnet hammer island jacket kettle lantern meadow".split()
)
_FURTHER = 20
"""Words of common_words that occur once after its list."""
_NEEDLES, _CHAINS, _HOPS = 4, 4, 4
"""Needles of the families with several; chains of variables, and variables after the first in each."""


@dataclass(frozen=True)
class NeedleText:
    """What one prompt hides in its filler and asks for, as text."""

    instruction: str
    """Stands before the filler."""
    statements: tuple[str, ...]
    """The needles; where the family asks at a depth, the first one is asked for."""
    question: str
    answers: tuple[str, ...]
    """All of them must be written."""
    right: tuple[str, ...]
    """Continuations of the question whose likelihood is compared with that of `wrong`."""
    wrong: tuple[str, ...]
    separator: str = ", "
    """Stands between the answers."""
    filler: str = SENTENCES
    """Repeated until the prompt has its length, where the needles do not lie in a document."""
    example: str = ""
    """A prompt with its answers, which stands before the instruction of a list if it is short beside the list."""


@dataclass(frozen=True)
class NeedleFamily:
    """A kind of needle prompt: everything that prompt sets, the configuration and the report need to know of it."""

    name: str
    build: Callable[..., NeedleText]
    """Draws the text of one prompt from a generator of random numbers."""
    number: int
    """Seeds the family's draws beside the run's seed and the length: it must never change."""
    display_name: str
    at_depth: bool = False
    """Whether it asks for one needle, which stands at a given depth."""
    in_texts: bool = False
    """Whether the needles lie in the text of test documents; otherwise they lie in repeated sentences."""
    is_list: bool = False
    """Whether its only statement is a list, as long as the prompt has room for. `build` then also takes the number of
    words in it, ``words``, and the text's filler continues the list up to the exact length."""


def _draw_numbers(rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """(numbers to state, other numbers, names to state them under), none of them twice."""
    numbers: list[str] = []
    while len(numbers) < 2 * _NEEDLES + OTHERS:
        if (number := str(draw_key(rng))) not in numbers:
            numbers.append(number)
    names = [_NAMES[index] for index in rng.choice(len(_NAMES), _NEEDLES, replace=False)]
    return numbers[:_NEEDLES], numbers[-OTHERS:], names


def _keys(rng: np.random.Generator, *, count: int) -> NeedleText:
    """Numbers under ``count`` names, the first one asked for."""
    stated, others, names = _draw_numbers(rng)
    statements = tuple(_NEEDLE.format(name=n, value=v) for n, v in zip(names[:count], stated, strict=False))
    wrong = (*stated[1:count], *others)[:OTHERS]
    return NeedleText(_TASK, statements, _ASK_ONE.format(name=names[0]), (stated[0],), (stated[0],), wrong)


def _values(rng: np.random.Generator) -> NeedleText:
    """Several numbers under one name, all asked for."""
    stated, others, (name, *_) = _draw_numbers(rng)
    statements = tuple(_NEEDLE.format(name=name, value=value) for value in stated)
    return NeedleText(_TASK, statements, _ASK_ALL.format(name=name), tuple(stated), tuple(stated), tuple(others))


def _queries(rng: np.random.Generator) -> NeedleText:
    """A number under each of several names, all names asked for, in another order than that of the statements."""
    stated, others, names = _draw_numbers(rng)
    statements = tuple(_NEEDLE.format(name=n, value=v) for n, v in zip(names, stated, strict=True))
    order = rng.permutation(_NEEDLES).tolist()
    *first, last = (names[place] for place in order)
    answers = tuple(stated[place] for place in order)
    question = _ASK_ALL.format(name=f"{', '.join(first)}, and {last}")
    return NeedleText(_TASK, statements, question, answers, answers, tuple(others))


def _chains(rng: np.random.Generator) -> NeedleText:
    """Chains of assignments; all variables with the first chain's value are asked for."""
    values, _, _ = _draw_numbers(rng)
    names = draw_codes(rng, _CHAINS * (_HOPS + 1), alphabet=ascii_uppercase, letters=5)
    chains = [names[start : start + _HOPS + 1] for start in range(0, len(names), _HOPS + 1)]
    assignments = [
        [f"\nVAR {chain[0]} = {value}\n", *(f"\nVAR {b} = VAR {a}\n" for a, b in pairwise(chain))]
        for value, chain in zip(values, chains, strict=True)
    ]
    # Chains are mixed, each in its own order: hop by hop.
    mixed = tuple(chain[hop] for hop in range(_HOPS + 1) for chain in assignments)
    question = _ASK_CHAIN.format(value=values[0], count=_HOPS + 1)
    # Only for the last variable does every hop have to be followed.
    right, wrong = (chains[0][-1],), tuple(chain[-1] for chain in chains[1:])
    return NeedleText(_TRACK, mixed, question, tuple(chains[0]), right, wrong, separator=" ")


def _common_words(rng: np.random.Generator, *, words: int) -> NeedleText:
    """A numbered list in which some words are more common than the others; all of them are asked for.

    The list has about ``words`` words, which occur as often as `common_counts` says. Where the list is cut to the
    prompt's length, it goes on with words that occur once. The example asks for as many words, which occur 3 times
    among as many others that occur once, as in RULER.
    """
    common, other = common_counts(words)
    count, size = len(common), len(common) + len(other)
    drawn = draw_words(rng, size + _FURTHER + 2 * count)
    listed, further, shown = drawn[:size], drawn[size : -2 * count], drawn[-2 * count :]
    items = shuffled(rng, dict(zip(listed, (*common, *other), strict=True)))
    shown_items = shuffled(rng, {word: 3 if place < count else 1 for place, word in enumerate(shown)})
    question, answers = _ASK_COMMON.format(count=count), tuple(listed[:count])
    return NeedleText(
        _COMMON,
        (numbered(items),),
        question,
        answers,
        answers,
        tuple(listed[count : count + OTHERS]),
        filler=f" {numbered(further, start=len(items) + 1)}",
        example=f"{_COMMON}{numbered(shown_items)}{question} {', '.join(shown[:count])}\n",
    )


def _frequent_words(rng: np.random.Generator, *, words: int) -> NeedleText:
    """Coded words whose frequencies follow a zeta distribution; the most frequent after the noise are asked for.

    The text has about ``words`` words, which occur as often as `zeta_counts` says. Noise follows them up to the
    prompt's length.
    """
    counts = zeta_counts(words)
    coded = draw_codes(rng, len(counts) - 1, alphabet=ascii_lowercase, letters=6)
    text = " ".join(shuffled(rng, dict(zip((_DOTS, *coded), counts, strict=True))))
    answers, rarer = tuple(coded[:ASKED_CODES]), tuple(coded[ASKED_CODES:][:OTHERS])
    return NeedleText(_FREQUENT, (text,), _ASK_FREQUENT, answers, answers, rarer, filler=f" {_DOTS}")


FAMILIES = Registry(
    (
        NeedleFamily("single", partial(_keys, count=1), 0, "single", at_depth=True),
        NeedleFamily("multi_key", partial(_keys, count=_NEEDLES), 1, "multi key", at_depth=True),
        NeedleFamily("multi_value", _values, 2, "multi value"),
        NeedleFamily("variable_tracking", _chains, 3, "variable tracking"),
        NeedleFamily(
            "multi_key_text", partial(_keys, count=_NEEDLES), 4, "multi key text", at_depth=True, in_texts=True
        ),
        NeedleFamily("multi_query", _queries, 5, "multi query"),
        NeedleFamily("common_words", _common_words, 6, "common words", is_list=True),
        NeedleFamily("frequent_words", _frequent_words, 7, "frequent words", is_list=True),
    ),
    group="ropewalk.needle_families",
)


def family_name(name: str) -> str:
    """How texts and tables call a needle family or the passkey task."""
    return FAMILIES[name].display_name if name in FAMILIES else name.replace("_", " ")


def in_texts(families: Sequence[str]) -> list[str]:
    """Those of ``families`` whose needles lie in test documents; other tasks' names are left out."""
    return [name for name in families if name in FAMILIES and FAMILIES[name].in_texts]
