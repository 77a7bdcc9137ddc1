"""Needle prompts: RULER's tasks for base models (arXiv 2404.06654), at exact token lengths, the same for every method.

Families: ``single`` (a number under one name), ``multi_key`` (numbers under several names, one asked for),
``multi_value`` (several numbers under one name, all asked for), ``variable_tracking`` (chains of assignments, all
variables with one value asked for), and ``multi_key_text`` (multi_key in the text of a document where the others have
repeated sentences). Numbers are held out of the recall documents, as the passkey task's are.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.corpus.recall import joined
from ropewalk.evaluate.passkey import draw_key
from ropewalk.evaluate.prompts import Prompt, Prompts, common_start, encode, first_id

IN_TEXTS = "multi_key_text"
"""The family whose needles lie in documents."""
FAMILIES = ("single", "multi_key", "multi_value", "variable_tracking", IN_TEXTS)
_AT_DEPTHS = ("single", "multi_key", IN_TEXTS)
"""Families that ask for one needle, which stands at a depth."""
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
class _Task:
    task: str
    statements: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]


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
        texts: token ids of documents, without BOS, that the needles of `IN_TEXTS` are hidden in, in turn.

    Raises:
        ValueError: the family is unknown, a text is missing or too short, or the statements and the question alone are
            longer than ``length``; says from which length the family can be asked.
    """
    if family not in FAMILIES:
        raise ValueError(f"no needle family {family}; there are {', '.join(FAMILIES)}")
    if family == IN_TEXTS and not texts:
        raise ValueError(f"needles of the family {family} lie in documents, found no texts")
    rng = np.random.default_rng((seed, length, FAMILIES.index(family)))
    grid = np.linspace(0, 1, depths)
    made = []
    for trial in range(trials):
        depth = round(float(grid[trial % depths]), 4) if family in _AT_DEPTHS else None
        document = texts[trial % len(texts)] if family == IN_TEXTS else None
        made.append(_prompt(tokenizer, family, _draw(rng, family), document, length=length, depth=depth, rng=rng))
    return Prompts(family, length, tuple(sorted(made, key=lambda prompt: prompt.depth or 0.0)))


def _draw(rng: np.random.Generator, family: str) -> _Task:
    values: list[str] = []
    while len(values) < 2 * _NEEDLES + _RANDOM_NUMBERS:
        if (value := str(draw_key(rng))) not in values:
            values.append(value)
    stated, others = values[:_NEEDLES], values[-_RANDOM_NUMBERS:]
    names = [_NAMES[index] for index in rng.choice(len(_NAMES), _NEEDLES, replace=False)]
    if family == "variable_tracking":
        return _chains(rng, stated)
    if family == "multi_value":
        statements = tuple(_NEEDLE.format(name=names[0], value=value) for value in stated)
        answers = tuple(stated)
        return _Task(_TASK, statements, _ASK_ALL.format(name=names[0]), answers, answers, tuple(others))
    count = 1 if family == "single" else _NEEDLES
    statements = tuple(_NEEDLE.format(name=n, value=v) for n, v in zip(names[:count], stated, strict=False))
    wrong = (*stated[1:count], *others)[:_RANDOM_NUMBERS]
    return _Task(_TASK, statements, _ASK_ONE.format(name=names[0]), (stated[0],), (stated[0],), wrong)


def _chains(rng: np.random.Generator, values: Sequence[str]) -> _Task:
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    names: list[str] = []
    while len(names) < _CHAINS * (_HOPS + 1):
        if (name := "".join(rng.choice(letters, 5))) not in names:
            names.append(name)
    chains = [names[start : start + _HOPS + 1] for start in range(0, len(names), _HOPS + 1)]
    statements = []
    for value, chain in zip(values, chains, strict=True):
        statements.append([f"\nVAR {chain[0]} = {value}\n"])
        statements[-1] += [f"\nVAR {b} = VAR {a}\n" for a, b in itertools.pairwise(chain)]
    # Chains are mixed, each in its own order: hop by hop.
    mixed = tuple(chain[hop] for hop in range(_HOPS + 1) for chain in statements)
    question = _ASK_CHAIN.format(value=values[0], count=_HOPS + 1)
    # The last variable is the one that takes every hop to tell.
    return _Task(_TRACK, mixed, question, tuple(chains[0]), (chains[0][-1],), tuple(chain[-1] for chain in chains[1:]))


def _prompt(
    tokenizer: Any,
    family: str,
    task: _Task,
    document: Sequence[int] | None,
    *,
    length: int,
    depth: float | None,
    rng: np.random.Generator,
) -> Prompt:
    separator = " " if family == "variable_tracking" else ", "
    texts = [separator.join(task.answers), *task.right, *task.wrong]
    question = encode(tokenizer, task.question)
    wholes = [encode(tokenizer, f"{task.question} {text}") for text in texts]
    # A tokenizer may join the question's end and an answer's beginning: the prompt ends before that for all of them.
    common = min(common_start(question, whole) for whole in wholes)
    answer, *others = [tuple(whole[common:]) for whole in wholes]
    head = encode(tokenizer, task.task)
    statements = [encode(tokenizer, statement) for statement in task.statements]
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
    count = len(task.right)
    return Prompt(
        depth=depth,
        asked=task.question.strip(),
        answers=task.answers,
        right=tuple(others[:count]),
        wrong=tuple(others[count:]),
        # Room for other tokens of the same text, and for other separators.
        decode_tokens=2 * len(answer) + 4,
        question_tokens=common,
        ids=(first_id(tokenizer), *head, *body, *question[:common]),
    )
