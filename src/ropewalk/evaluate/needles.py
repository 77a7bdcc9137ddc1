"""Needle prompts: a family's text hidden in filler, at exact token lengths, the same for every method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ropewalk.corpus.recall import joined
from ropewalk.evaluate.needle_families import FAMILIES, NeedleFamily, NeedleText
from ropewalk.evaluate.prompts import Prompt, Prompts, common_start, encode, first_id

_EXAMPLE_SHARE = 0.25
"""Largest share of a prompt that an example takes up; a prompt in which it would be longer has none."""


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
    """``trials`` prompts of one of `ropewalk.evaluate.needle_families.FAMILIES`.

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
        text = _longest_list(tokenizer, entry, length=length, rng=rng) if entry.is_list else entry.build(rng)
        place = 0.0 if entry.is_list else depth
        prompt = needle_prompt(tokenizer, family, text, document, length=length, depth=place, rng=rng)
        prompts.append(replace(prompt, depth=depth))
    return Prompts(family, length, tuple(sorted(prompts, key=lambda prompt: prompt.depth or 0.0)))


@dataclass(frozen=True)
class _Encoded:
    """A text in token ids, without filler."""

    head: list[int]
    """The example and the instruction."""
    statements: list[list[int]]
    question: list[int]
    """Without what the tokenizer joins with the beginning of an answer."""
    continuations: list[tuple[int, ...]]
    """The answers as one writes them, then the right and the wrong continuations."""

    @classmethod
    def of(cls, tokenizer: Any, text: NeedleText) -> Self:
        continuations = [text.separator.join(text.answers), *text.right, *text.wrong]
        question = encode(tokenizer, text.question)
        wholes = [encode(tokenizer, f"{text.question} {continuation}") for continuation in continuations]
        # A tokenizer may join the question's end and an answer's beginning, so the prompt ends before such a token.
        common = min(common_start(question, whole) for whole in wholes)
        return cls(
            encode(tokenizer, text.example + text.instruction),
            [encode(tokenizer, statement) for statement in text.statements],
            question[:common],
            [tuple(whole[common:]) for whole in wholes],
        )

    @property
    def tokens(self) -> int:
        """Number of tokens, with BOS and the answers."""
        parts = (self.head, *self.statements, self.question, self.continuations[0])
        return 1 + sum(map(len, parts))


def _longest_list(tokenizer: Any, entry: NeedleFamily, *, length: int, rng: np.random.Generator) -> NeedleText:
    """A text of a family of lists with as many words as ``length`` has room for, and with its example if that is short.

    Every number of words is tried with the same random draws.
    """
    seed = int(rng.integers(2**63))

    def drawn(words: int, *, example: bool) -> NeedleText:
        text = entry.build(np.random.default_rng(seed), words=words)
        return text if example else replace(text, example="")

    def longest(*, example: bool) -> NeedleText:
        words = _most_words(
            lambda words: _Encoded.of(tokenizer, drawn(words, example=example)).tokens, most_tokens=length
        )
        return drawn(words, example=example)

    text = longest(example=True)
    is_short = len(encode(tokenizer, text.example)) <= _EXAMPLE_SHARE * length
    return text if is_short else longest(example=False)


def _most_words(tokens: Callable[[int], int], *, most_tokens: int) -> int:
    """The largest number of words for which ``tokens`` gives at most ``most_tokens``, or 1.

    A word has at least one token. Tokens grow almost linearly with words, so a few linear interpolations suffice.
    """
    most, too_many, words = 1, most_tokens, max(most_tokens // 16, 2)
    tokens_of_one = tokens(1)
    while too_many - most > 1:
        tokens_of_words = tokens(words)
        if tokens_of_words <= most_tokens:
            most = words
        else:
            too_many = words
        per_word = max((tokens_of_words - tokens_of_one) / (words - 1), 1.0)
        words = min(max(words + int((most_tokens - tokens_of_words) / per_word), most + 1), too_many - 1)
    return most


def needle_prompt(
    tokenizer: Any,
    family: str,
    text: NeedleText,
    document: Sequence[int] | None,
    *,
    length: int,
    depth: float | None,
    rng: np.random.Generator,
) -> Prompt:
    """A prompt that has exactly ``length`` token ids together with its answer, BOS first.

    Args:
        document: token ids of the filler, at least as many as it needs; None for the text's filler, repeated.
        depth: where in the filler the first statement stands, 0 for its start and 1 for its end; None for a place that
            ``rng`` draws, as it draws those of the others.

    Raises:
        ValueError: the statements and the question alone are longer than ``length``, or the document is too short.
    """
    encoded = _Encoded.of(tokenizer, text)
    room = length - encoded.tokens
    if room < 0:
        raise ValueError(
            f"needles of the family {family} need at least {length - room} tokens with this tokenizer, found length "
            f"{length}; leave out the length, or the family (evaluate.passkey_lengths, evaluate.needles, "
            "evaluate.retrieval.tasks)"
        )
    if document is None:
        piece = encode(tokenizer, text.filler)
        document = piece * (room // len(piece) + 1)
    if len(document) < room:
        raise ValueError(f"a {family} prompt of {length} tokens needs a text of {room} tokens, found {len(document)}")
    filler = list(document[:room])
    places = np.sort(rng.integers(0, room + 1, len(encoded.statements))).tolist()
    if depth is not None:
        # The first statement is asked for; it stands at its depth, the others where they were drawn.
        places = [round(depth * room), *places[1:]]
    body = joined(filler, list(zip(places, encoded.statements, strict=True)))
    answer, *others = encoded.continuations
    count = len(text.right)
    return Prompt(
        depth=depth,
        asked=text.question.strip(),
        answers=text.answers,
        right=tuple(others[:count]),
        wrong=tuple(others[count:]),
        # Room for other tokens of the same text, and for other separators.
        decode_tokens=2 * len(answer) + 4,
        question_tokens=len(encoded.question),
        ids=(first_id(tokenizer), *encoded.head, *body, *encoded.question),
    )
