"""Recall documents: text in which values are stated once and asked for later.

A small model learns to look values up only from text that asks for them. These documents are
mixed into the walker's training and, at a declared share, into fine-tuning. The wordings differ
from the passkey task's, and no five-digit value with ``value % 7 == 3`` occurs: those are the
keys that the task draws from (`is_held_out_key`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

_THINGS = (
    "access code|door number|room number|serial number|ticket number|account|order number|lucky number|locker|"
    "vault code|extension|badge number|flight number|batch|invoice|station code|channel|port|zip code|model number|"
    "secret word|gate|lane|box number|file number|user id|pin|table number|page|street number|magic value|checksum|"
    "token|limit|offset|buffer size|timeout|version|session id|build number|line number|entry|index|signal"
).split("|")
_OWNERS = (
    "|||||of the red house|of the first team|of Anna|of Peter|of the server|for today|of the library|of line two"
).split("|")
_STATEMENTS = (
    "Note that the {thing} is {value}.|{Thing}: {value}|{name} = {value}|# {thing}: {value}|"
    "Keep in mind that {value} is the {thing}.|We set the {thing} to {value} here.|"
    "Attention! {Thing} is {value}, do not lose it.|{value} was chosen as the {thing}.|"
    'The {thing} equals {value}. Write it down: {value}.|"{name}": {value},'
).split("|")
_QUESTIONS = (
    "So the {thing} is {value}|{Thing}: {value}|{name} = {value}|# {thing}: {value}|"
    "Which {thing} was given? It was {value}|Now tell me the {thing}. The {thing} was {value}|"
    "Q: {thing}? A: {value}|assert {name} == {value}|Somebody asks for the {thing}. {Thing} is {value}|"
    "Do you recall the {thing}? The {thing} is {value}"
).split("|")
_SENTENCES = (
    "The river runs to the sea.|A dog sleeps by the door.|Rain falls on the roof.|The road is long.|Snow is white.|"
    "We walk and we talk.|Bread is on the table.|Up and down.|The wind blows from the north.|Apples grow on trees.|"
    "One step after another.|The night is dark.|Birds fly over the hill.|Nothing happens here.|Stones are heavy.|"
    "The train leaves at noon.|Left and right.|Children play in the park.|Fire is hot.|The moon is round.|"
    "Again and again.|A ship comes in.|The clock ticks.|Leaves fall in autumn."
).split("|")
_WORDS = (
    "alpha|bravo|cedar|delta|ember|falcon|garnet|harbor|iris|jasper|kilo|lotus|maple|nova|opal|prism|quartz|raven|"
    "sierra|tango"
).split("|")


def is_held_out_key(value: int) -> bool:
    """Whether a five-digit value is kept for the passkey task, and so never occurs in a recall document."""
    return value % 7 == 3


def _value(rng: np.random.Generator) -> str:
    if rng.random() < 0.15:
        return "_".join(rng.choice(_WORDS, 2))
    digits = 5 if rng.random() < 0.5 else int(rng.integers(2, 9))
    while True:
        value = int(rng.integers(10 ** (digits - 1), 10**digits))
        if digits != 5 or not is_held_out_key(value):
            return str(value)


def _made_up_word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(letters)) for letters in ["bdfgklmnprstvz", "aeiou"] * int(rng.integers(1, 4)))


def draw_facts(rng: np.random.Generator, count: int) -> Iterator[dict[str, str]]:
    """Things with a value each, as the fields of a wording: thing, Thing, name, value.

    Half of the things have made-up names, so that looking up means matching names and not knowing them.
    """
    for known in rng.choice(_THINGS, count, replace=False):
        if rng.random() < 0.5:
            thing = " ".join(_made_up_word(rng) for _ in range(int(rng.integers(1, 3))))
        else:
            thing = f"{known} {owner}" if (owner := rng.choice(_OWNERS)) else str(known)
        name = thing.replace(" ", "_").upper() if rng.random() < 0.5 else thing.replace(" ", "_")
        yield {"thing": thing, "Thing": thing.capitalize(), "name": name, "value": _value(rng)}


def _filler(rng: np.random.Generator, code: np.ndarray, length: int, tokenizer: Any) -> list[int]:
    kind = rng.random()
    if kind < 0.45:
        filler: list[int] = code[:length].tolist()
        return filler
    sentences = rng.choice(_SENTENCES, int(rng.integers(2, 7)) if kind < 0.8 else 24)
    text = " ".join(sentences) + (" " if rng.random() < 0.5 else "\n")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return (ids * (length // len(ids) + 1))[:length]


def recall_row(rng: np.random.Generator, *, code: np.ndarray, length: int, tokenizer: Any) -> list[int]:
    """A row of ``length`` token ids: filler with facts stated at random depths, then questions with answers.

    Args:
        code: at least ``length`` token ids of training text, the filler of most rows.
        tokenizer: a transformers tokenizer.

    Raises:
        ValueError: not even one fact and one question fit.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    most = int(rng.choice([1, 1, 1, 2, 3, 4, 5]))
    asked_tokens = rng.uniform(0.05, 0.7) * min(length, 300)
    facts, statements, questions, room = [], list[list[int]](), list[int](), length - 1
    for fact in draw_facts(rng, most):
        statement = encode("\n" + str(rng.choice(_STATEMENTS)).format(**fact) + "\n")
        question = encode("\n" + str(rng.choice(_QUESTIONS)).format(**fact))
        if len(statement) + len(question) > room:
            break
        facts.append(fact)
        statements.append(statement)
        questions += question
        room -= len(statement) + len(question)
    if not facts:
        raise ValueError(f"a recall row of {length} tokens has no room for a fact and its question")
    while len(questions) < asked_tokens:
        fact = facts[int(rng.integers(len(facts)))]
        question = encode("\n" + str(rng.choice(_QUESTIONS)).format(**fact))
        if len(question) > room:
            break
        questions += question
        room -= len(question)
    questions += encode("\n")[:1]
    room = length - len(questions) - sum(map(len, statements))
    filler = _filler(rng, code, room, tokenizer)
    row: list[int] = []
    start = 0
    for statement, place in zip(statements, sorted(rng.integers(0, room + 1, len(facts)).tolist()), strict=True):
        row += filler[start:place] + statement
        start = place
    return row + filler[start:] + questions
