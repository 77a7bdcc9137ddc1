"""Recall documents: text that states values and asks for them later.

A small model learns to look up values only from text that asks for them. These documents are mixed into the training
of the walker and, at a declared share, into fine-tuning. Things are named by words of the training text and by made-up
words, so that the model has to match names instead of knowing them, and much of the filler has the form of a statement
("The hill is tall."), so that the last word before the value is not enough. The wordings differ from those of the
passkey task, and five-digit values with ``value % 7 == 3`` do not occur, because the task draws its keys from these
(`is_held_out_key`).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")
_Tokens = list[tuple[int, bool]]
"""Pairs of a token id and whether it belongs to an answer."""
_Numbered = tuple[int, _Tokens]
"""The number of the fact that some tokens ask for, or their place in the filler, and the tokens."""

_NOUNS = (
    "access|account|alarm|answer|apple|badge|barn|batch|bell|boat|book|bottle|box|branch|bread|bridge|buffer|cabin|"
    "card|cat|chair|channel|checksum|city|clock|cloud|coat|counter|door|dog|engine|entry|farm|field|file|flight|floor|"
    "flower|forest|friend|garden|gate|guard|harbor|hill|horse|house|index|invoice|lamp|lane|letter|library|limit|line|"
    "locker|lock|market|message|mill|model|moon|mountain|night|office|offset|order|page|paper|park|phone|pin|plan|"
    "port|river|road|roof|room|rope|school|sea|secret|server|session|ship|shop|signal|snow|stone|station|street|table|"
    "team|ticket|timeout|token|tower|town|train|tree|user|valley|vault|version|voice|wall|water|wind|window|winter"
).split("|")
_ADJECTIVES = (
    "big|bright|brown|busy|calm|clean|clear|cold|cool|dark|dear|deep|dry|empty|far|fast|fine|free|full|good|great|grey|"
    "hard|heavy|high|hot|kind|late|light|little|long|loud|low|near|new|nice|old|open|pink|plain|poor|pure|quick|quiet|"
    "red|rich|ripe|round|safe|sharp|short|silent|slow|small|soft|still|strange|strong|sweet|tall|thin|tired|true|warm|"
    "weak|wet|white|wide|wild|wise|young"
).split("|")
_CODES = "code|number|word|id|value|count|name|size|mark|sign".split("|")
_WORDINGS = (
    ("Note that the {thing} is {value}.", "Note that the {thing} is {value}"),
    ("{Thing}: {value}", "{Thing}: {value}"),
    ("{name} = {value}", "{name} = {value}"),
    ("# {thing}: {value}", "# {thing}: {value}"),
    ('"{name}": {value},', '"{name}": {value}'),
    ("{name}({value})", "{name}({value}"),
    ("We set the {thing} to {value} here.", "We set the {thing} to {value}"),
    ("Attention! The {thing} is {value}, do not lose it.", "Somebody asks for the {thing}. The {thing} is {value}"),
    ("The {thing} equals {value}. Write it down: {value}.", "Say it: the {thing} equals {value}"),
    ("The {thing} is {value}. So {value} is this {thing}.", "Tell us about the {thing}! The {thing} is {value}"),
    ("My {thing} is {value}, yes, {value}.", "You ask for my {thing}? My {thing} is {value}"),
    ("Our {thing} was {value}; {value} was our {thing}.", "Do you recall our {thing}? Our {thing} was {value}"),
    ("{value} is the {thing}; the {thing} is {value}.", "Now the {thing} again: the {thing} is {value}"),
)
"""Pairs of a statement and a question that ends with its answer."""
_SENTENCES = (
    *("The {noun} is {adjective}.",) * 6,
    "A {noun} is by the {other}.",
    "{Adjective} and {adjective}.",
    "The {adjective} {noun} is a {other}.",
    "Our {noun} was {adjective}.",
    "We go to the {noun} and back.",
    "This is the {noun}.",
    "What a {adjective} {noun}!",
    "Up and down.",
    "Nothing happens.",
    "One step after another.",
    "Left and right.",
)


def is_held_out_key(value: int) -> bool:
    """Whether a five-digit value is reserved for the passkey task, so that no recall document contains it."""
    return value % 7 == 3


def held_out_words(rng: np.random.Generator) -> tuple[str, str]:
    """Two words that no value of a recall document joins: an adjective and a noun, where values have two nouns."""
    return _pick(rng, _ADJECTIVES), _pick(rng, _NOUNS)


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _value(rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        return f"{_pick(rng, _NOUNS)}_{_pick(rng, _NOUNS)}"
    digits = 5 if rng.random() < 0.6 else int(rng.integers(2, 9))
    while True:
        value = int(rng.integers(10 ** (digits - 1), 10**digits))
        if digits != 5 or not is_held_out_key(value):
            return str(value)


def _made_up_word(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, letters) for letters in ["bdfgklmnprstvz", "aeiou"] * int(rng.integers(1, 4)))


def _thing(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Name of a thing that has a value: "gate code", or one to three words, made up or from ``words``."""
    kind = rng.random()
    if kind < 0.35:
        return f"{_pick(rng, _NOUNS)} {_pick(rng, _CODES)}"
    count = int(rng.integers(1, 4))
    return " ".join(_made_up_word(rng) if kind < 0.65 else _pick(rng, words) for _ in range(count))


def draw_facts(rng: np.random.Generator, count: int, *, words: Sequence[str] = _NOUNS) -> Iterator[dict[str, str]]:
    """Yield ``count`` different things with a value each, as the fields of a wording: thing, Thing, name, value.

    Args:
        words: words that may occur in the name of a thing, in addition to known and made-up ones.
    """
    things: set[str] = set()
    while len(things) < count:
        thing = _thing(rng, words)
        # Both words are common in Python; together they are the name that the passkey task asks for.
        if thing in things or "pass key" in thing:
            continue
        things.add(thing)
        name = thing.replace(" ", "_")
        yield {
            "thing": thing,
            "Thing": thing.capitalize(),
            "name": name.upper() if rng.random() < 0.3 else name,
            "value": _value(rng),
        }


def _sentences(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Two to seven or sixty short sentences; the filler repeats them until it is long enough."""
    count = int(rng.integers(2, 8)) if rng.random() < 0.7 else 60

    def noun() -> str:
        return _pick(rng, words if rng.random() < 0.3 else _NOUNS)

    sentences = []
    for _ in range(count):
        adjective, first, second = _pick(rng, _ADJECTIVES), noun(), noun()
        sentence = _pick(rng, _SENTENCES)
        fields = {"adjective": adjective, "Adjective": adjective.capitalize(), "noun": first, "other": second}
        sentences.append(sentence.format(**fields))
    return " ".join(sentences) + (" " if rng.random() < 0.7 else "\n")


def recall_row(
    rng: np.random.Generator, *, code: np.ndarray, length: int, tokenizer: Any
) -> tuple[list[int], list[bool]]:
    """Draw a row of filler, facts stated at random depths, and questions with their answers.

    Half of the rows ask all questions at the end, the others also in between. The longer the row, the more facts it may
    hold, so that a long row teaches no less than several short ones.

    Returns:
        ``length`` token ids, and for each whether it belongs to an answer.

    Args:
        code: at least ``length`` token ids of training text, which is the filler of a quarter of the rows.
        tokenizer: a transformers tokenizer.

    Raises:
        ValueError: not even one fact and one question fit.
    """
    words = re.findall(r"[a-z]{3,9}", tokenizer.decode(code[:300])) or _NOUNS
    count = 1 if rng.random() < 0.4 else int(rng.integers(2, max(6, length // 48)))
    facts = [(fact, _pick(rng, _WORDINGS)) for fact in draw_facts(rng, count, words=words)]
    # Every fact is asked for once, some again.
    asked = [*range(count), *rng.integers(0, count, int(rng.integers(0, 2 * count + 1))).tolist()]
    texts = [statement.format(**fact) for fact, (statement, _) in facts]
    for which in asked:
        fact, wording = facts[which]
        # The wording of a quarter of the questions differs from that of the statement.
        _, question = wording if rng.random() >= 0.25 else _pick(rng, _WORDINGS)
        texts.append(question.format(**fact))
    lines = [*(f"\n{text}\n" for text in texts), _sentences(rng, words)]
    # The answer is the value at the end of a question and the character before it, which some tokenizers join to it.
    answers = [0] * count + [len(facts[which][0]["value"]) + 1 for which in asked] + [0]
    encoded = tokenizer(lines, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    marked = [
        [(token, bool(size) and end > len(line) - 1 - size and start < len(line) - 1) for token, (start, end) in pairs]
        for line, size, pairs in zip(
            lines, answers, map(zip, encoded["input_ids"], encoded["offset_mapping"]), strict=True
        )
    ]
    numbered = list(zip(asked, marked[count:-1], strict=True))
    statements, questions, room = _fitting(marked[:count], numbered, length=length)
    if not statements:
        raise ValueError(f"a recall row of {length} tokens has no room for a fact and its question")
    parts = _placed(rng, statements, questions, room=room)
    plain = code[:room].tolist() if rng.random() < 0.25 else np.resize(encoded["input_ids"][-1], room).tolist()
    row = joined([(token, False) for token in plain], parts)
    return [token for token, _ in row], [answer for _, answer in row]


def _fitting(
    statements: Sequence[_Tokens], questions: Sequence[_Numbered], *, length: int
) -> tuple[dict[int, _Tokens], list[_Numbered], int]:
    """The statements by fact and the questions that fit into ``length`` tokens, and the number of tokens that remain.

    They are taken in order. The first question about a fact comes with the statement of the fact; a later one is taken
    only if the first one was.
    """
    stated: dict[int, _Tokens] = {}
    asked: list[_Numbered] = []
    room = length
    for place, (which, question) in enumerate(questions):
        first = place < len(statements)
        needed = len(question) + (len(statements[which]) if first else 0)
        if needed <= room and (first or which in stated):
            stated[which] = statements[which]
            asked.append((which, question))
            room -= needed
    return stated, asked, room


def _placed(
    rng: np.random.Generator, statements: dict[int, _Tokens], questions: Sequence[_Numbered], *, room: int
) -> list[_Numbered]:
    """Draw places in ``room`` tokens of filler for statements and questions, no question before its statement.

    A fifth of the statements are placed at the very start or end, where a model fails first. In some rows all are
    placed in the first quarter and asked for at the end, because large distances would be rare otherwise.
    """
    layout = rng.random()
    far, at_the_end = layout < 0.35, layout < 0.65
    stated = {}
    for which in statements:
        edge = rng.random()
        latest = room // 4 if far else room
        stated[which] = 0 if edge < 0.1 else latest if edge < 0.2 else int(rng.integers(0, latest + 1))
    parts = [(stated[which], tokens) for which, tokens in statements.items()]
    for which, question in questions:
        late = at_the_end or rng.random() < 0.5
        parts.append((room if late else int(rng.integers(stated[which], room + 1)), question))
    return parts


def joined(filler: list[_T], parts: Sequence[tuple[int, list[_T]]]) -> list[_T]:
    """``filler`` with the tokens of each part inserted at its place; parts at the same place keep their order."""
    row: list[_T] = []
    start = 0
    for place, tokens in sorted(parts, key=lambda part: part[0]):
        row += filler[start:place] + tokens
        start = place
    return row + filler[start:]
