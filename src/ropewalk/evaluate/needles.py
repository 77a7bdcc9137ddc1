"""Needle prompts: RULER's tasks for base models (arXiv 2404.06654), at exact token lengths, the same for every method.

`FAMILIES` holds the families. Their numbers are held out of the recall documents, as the passkey task's are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ropewalk.corpus.recall import joined
from ropewalk.evaluate.prompts import Prompt, Prompts, common_start, draw_key, encode, first_id
from ropewalk.registry import Registry

_SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
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
_NAMES = tuple(
    f"{adjective}-{noun}"
    for adjective in "amber brave crisp dusty eager faint gentle hollow icy jolly keen lively mellow noble".split()
    for noun in "anchor badger candle dragon emblem falcon garnet hammer island jacket kettle lantern meadow".split()
)
_NEEDLES, _CHAINS, _HOPS = 4, 4, 4
"""Needles of multi_key and multi_value; chains of variables, and variables after the first in each."""
_RANDOM_NUMBERS = 7
"""Numbers beside those in the text that the right answer's likelihood is compared with."""


@dataclass(frozen=True)
class NeedleText:
    """What one prompt hides in its filler and asks for, as text."""

    instruction: str
    """Stands before the filler."""
    statements: tuple[str, ...]
    """The needles; where the family asks at a depth, the first one is asked for."""
    question: str
    answers: tuple[str, ...]
    """All of them are to be written."""
    right: tuple[str, ...]
    """Continuations of the question whose likelihood is compared with that of `wrong`."""
    wrong: tuple[str, ...]
    separator: str = ", "
    """Stands between the answers."""


@dataclass(frozen=True)
class NeedleFamily:
    """A kind of needle prompt: all that prompt sets, the configuration and the report know of it."""

    name: str
    build: Callable[[np.random.Generator], NeedleText]
    """Draws the text of one prompt."""
    number: int
    """Seeds the family's draws beside the run's seed and the length: it must never change."""
    display_name: str
    at_depth: bool = False
    """Whether it asks for one needle, which stands at a given depth."""
    in_texts: bool = False
    """Whether the needles lie in the text of test documents; otherwise they lie in repeated sentences."""


def _draw_numbers(rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """(numbers to state, other numbers, names to state them under), none of them twice."""
    numbers: list[str] = []
    while len(numbers) < 2 * _NEEDLES + _RANDOM_NUMBERS:
        if (number := str(draw_key(rng))) not in numbers:
            numbers.append(number)
    names = [_NAMES[index] for index in rng.choice(len(_NAMES), _NEEDLES, replace=False)]
    return numbers[:_NEEDLES], numbers[-_RANDOM_NUMBERS:], names


def _keys(rng: np.random.Generator, *, count: int) -> NeedleText:
    """Numbers under ``count`` names, the first one asked for."""
    stated, others, names = _draw_numbers(rng)
    statements = tuple(_NEEDLE.format(name=n, value=v) for n, v in zip(names[:count], stated, strict=False))
    wrong = (*stated[1:count], *others)[:_RANDOM_NUMBERS]
    return NeedleText(_TASK, statements, _ASK_ONE.format(name=names[0]), (stated[0],), (stated[0],), wrong)


def _values(rng: np.random.Generator) -> NeedleText:
    """Several numbers under one name, all asked for."""
    stated, others, (name, *_) = _draw_numbers(rng)
    statements = tuple(_NEEDLE.format(name=name, value=value) for value in stated)
    return NeedleText(_TASK, statements, _ASK_ALL.format(name=name), tuple(stated), tuple(stated), tuple(others))


def _chains(rng: np.random.Generator) -> NeedleText:
    """Chains of assignments; all variables with the first chain's value are asked for."""
    values, _, _ = _draw_numbers(rng)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    names: list[str] = []
    while len(names) < _CHAINS * (_HOPS + 1):
        if (name := "".join(rng.choice(letters, 5))) not in names:
            names.append(name)
    chains = [names[start : start + _HOPS + 1] for start in range(0, len(names), _HOPS + 1)]
    assignments = [
        [f"\nVAR {chain[0]} = {value}\n", *(f"\nVAR {b} = VAR {a}\n" for a, b in pairwise(chain))]
        for value, chain in zip(values, chains, strict=True)
    ]
    # Chains are mixed, each in its own order: hop by hop.
    mixed = tuple(chain[hop] for hop in range(_HOPS + 1) for chain in assignments)
    question = _ASK_CHAIN.format(value=values[0], count=_HOPS + 1)
    # The last variable is the one that takes every hop to tell.
    right, wrong = (chains[0][-1],), tuple(chain[-1] for chain in chains[1:])
    return NeedleText(_TRACK, mixed, question, tuple(chains[0]), right, wrong, separator=" ")


FAMILIES = Registry(
    (
        NeedleFamily("single", partial(_keys, count=1), 0, "single", at_depth=True),
        NeedleFamily("multi_key", partial(_keys, count=_NEEDLES), 1, "multi key", at_depth=True),
        NeedleFamily("multi_value", _values, 2, "multi value"),
        NeedleFamily("variable_tracking", _chains, 3, "variable tracking"),
        NeedleFamily(
            "multi_key_text", partial(_keys, count=_NEEDLES), 4, "multi key text", at_depth=True, in_texts=True
        ),
    ),
    group="ropewalk.needle_families",
)


def in_texts(families: Sequence[str]) -> list[str]:
    """Those of ``families`` whose needles lie in test documents; other tasks' names are left out."""
    return [name for name in families if name in FAMILIES and FAMILIES[name].in_texts]


def needle_prompts(
    tokenizer: Any,
    family: str,
    *,
    length: int,
    trials: int,
    depths: int,
    seed: int,
    texts: Sequence[Sequence[int]] = (),
) -> Prompts:
    """``trials`` prompts of one of `FAMILIES`.

    Args:
        texts: token ids of documents, without BOS, that needles are hidden in, in turn, where the family does so.

    Raises:
        ValueError: the family is unknown, a text is missing or too short, or the statements and the question alone are
            longer than ``length``; says from which length the family can be asked.
    """
    if family not in FAMILIES:
        raise ValueError(f"no needle family {family}; there are {', '.join(FAMILIES)}")
    entry = FAMILIES[family]
    if entry.in_texts and not texts:
        raise ValueError(f"needles of the family {family} lie in documents, found no texts")
    rng = np.random.default_rng((seed, length, entry.number))
    grid = np.linspace(0, 1, depths)
    prompts = []
    for trial in range(trials):
        depth = round(float(grid[trial % depths]), 4) if entry.at_depth else None
        document = texts[trial % len(texts)] if entry.in_texts else None
        prompts.append(_prompt(tokenizer, family, entry.build(rng), document, length=length, depth=depth, rng=rng))
    return Prompts(family, length, tuple(sorted(prompts, key=lambda prompt: prompt.depth or 0.0)))


def _prompt(
    tokenizer: Any,
    family: str,
    text: NeedleText,
    document: Sequence[int] | None,
    *,
    length: int,
    depth: float | None,
    rng: np.random.Generator,
) -> Prompt:
    continuations = [text.separator.join(text.answers), *text.right, *text.wrong]
    question = encode(tokenizer, text.question)
    wholes = [encode(tokenizer, f"{text.question} {continuation}") for continuation in continuations]
    # A tokenizer may join the question's end and an answer's beginning: the prompt ends before that for all of them.
    common = min(common_start(question, whole) for whole in wholes)
    answer, *others = [tuple(whole[common:]) for whole in wholes]
    head = encode(tokenizer, text.instruction)
    statements = [encode(tokenizer, statement) for statement in text.statements]
    room = length - 1 - len(head) - sum(map(len, statements)) - common - len(answer)
    if room < 0:
        raise ValueError(
            f"needles of the family {family} need at least {length - room} tokens with this tokenizer, found length "
            f"{length}; leave out the length, or the family (evaluate.needles, evaluate.retrieval.tasks)"
        )
    if document is None:
        sentence = encode(tokenizer, _SENTENCES)
        document = sentence * (room // len(sentence) + 1)
    if len(document) < room:
        raise ValueError(f"a {family} prompt of {length} tokens needs a text of {room} tokens, found {len(document)}")
    filler = list(document[:room])
    places = np.sort(rng.integers(0, room + 1, len(statements))).tolist()
    if depth is not None:
        # The first statement is asked for; it stands at its depth, the others where they were drawn.
        places = [round(depth * room), *places[1:]]
    body = joined(filler, list(zip(places, statements, strict=True)))
    count = len(text.right)
    return Prompt(
        depth=depth,
        asked=text.question.strip(),
        answers=text.answers,
        right=tuple(others[:count]),
        wrong=tuple(others[count:]),
        # Room for other tokens of the same text, and for other separators.
        decode_tokens=2 * len(answer) + 4,
        question_tokens=common,
        ids=(first_id(tokenizer), *head, *body, *question[:common]),
    )
