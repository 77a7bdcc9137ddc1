"""Which tokens of a search document count, and how much: all of its text, answers about needles, and copied tokens.

Most tokens of a text can be predicted from the few before them under any factors, so perplexity alone favours factors
that read well nearby and lose what stands far back. LongRoPE2 (arXiv 2502.20082, section 3.1) therefore judges by the
answers to needles. Tokens that a natural text copies from beyond the window are needles that need no prompt.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ropewalk.config import FitnessConfig
from ropewalk.corpus.recall import draw_facts, joined

_STATEMENT = "\nThe {thing} is {value}.\n"
_QUESTION = "\nOnce more, the {thing} is"
_ASKED_AT = (0.5, 1.0)
"""Where a row's questions stand, as shares of its length; the needles of each lie anywhere before it."""
_CONTEXT = 4
"""Number of tokens before a copied token that stood before its source as well."""


class WeightedRows(NamedTuple):
    """Token rows, and the weight of each token's loss in their weighted sum."""

    rows: Tensor
    """(rows, length) token ids, BOS first."""
    weights: Tensor | None = None
    """(rows, length) float32, not negative, 0 for the first token of each row; None where the loss is the mean over
    all tokens but the first."""


def weighted_rows(
    rows: Tensor, fitness: FitnessConfig, *, tokenizer: Any, window: int, seed: tuple[int, ...]
) -> WeightedRows:
    """``rows`` with the needles of a fitness, weighted by it: each kind of token's mean loss times the kind's weight.

    A kind that does not occur in the rows is left out of the sum.

    Args:
        rows: (rows, length) token ids of text, BOS first.
        tokenizer: writes the needles; may be None where the fitness has none.
        window: number of tokens beyond which a copied token's source must lie.
        seed: seed of the needles.

    Raises:
        ValueError: none of the kinds occurs.
    """
    if fitness.is_perplexity:
        return WeightedRows(rows)
    text = torch.ones_like(rows, dtype=torch.bool)
    answers = torch.zeros_like(text)
    if fitness.needles:
        rows, text, answers = needle_rows(rows, tokenizer, needles=fitness.needles, seed=seed)
    kinds = [(fitness.text_weight, text), (fitness.needle_weight, answers)]
    if fitness.copied_weight:
        copied = torch.stack([torch.from_numpy(copied_tokens(row.numpy(), window=window)) for row in rows])
        kinds.append((fitness.copied_weight, copied & text))
    weights = torch.zeros(rows.shape)
    for weight, tokens in kinds:
        tokens[:, 0] = False
        weights += weight * tokens / max(int(tokens.sum()), 1)
    if not weights.any():
        raise ValueError(
            f"search.fitness={fitness.name} finds nothing to judge in {rows.shape[1]} tokens, which have no room for a "
            "fact and its question; search for a longer target, or take search/fitness=perplexity"
        )
    return WeightedRows(rows, weights)


def copied_tokens(tokens: np.ndarray, *, window: int) -> np.ndarray:
    """Whether each of ``tokens`` (length,) is copied from beyond the window, of the same shape.

    A token is copied if the `_CONTEXT` tokens before it occurred earlier with the same continuation, and did not occur,
    with any continuation, within the ``window`` tokens before it.
    """
    copied = np.zeros(len(tokens), np.bool_)
    last: dict[tuple[int, ...], int] = {}
    continuations: dict[tuple[int, ...], set[int]] = {}
    ids = tokens.tolist()
    for place in range(_CONTEXT, len(ids)):
        context = tuple(ids[place - _CONTEXT : place])
        if context in last and place - last[context] > window:
            copied[place] = ids[place] in continuations[context]
        last[context] = place
        continuations.setdefault(context, set()).add(ids[place])
    return copied


def needle_rows(
    rows: Tensor, tokenizer: Any, *, needles: int, seed: tuple[int, ...], stated: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as long as ``rows`` (rows, length), in which ``needles`` facts are stated, and asked for later.

    Half of the facts are asked for in the middle of a row, the others at its end. Facts stand at stratified depths from
    the row's start to their questions. Each row loses as many of its last tokens as are inserted, at most half of it:
    a short row has fewer facts.

    Args:
        stated: whether the facts are stated; where they are not, the answers can only be guessed.

    Returns:
        (rows, text, answers): whether each token is of the text, or of an answer.
    """
    drawn = [
        _with_needles(row.tolist(), tokenizer, needles, np.random.default_rng((*seed, number)), stated=stated)
        for number, row in enumerate(rows)
    ]
    ids, kinds = (torch.tensor([[token[part] for token in row] for row in drawn]) for part in (0, 1))
    return ids, kinds == _TEXT, kinds == _ANSWER


_TEXT, _ANSWER, _OTHER = range(3)
_Tokens = list[tuple[int, int]]
"""Pairs of a token id and its kind."""


def _with_needles(row: list[int], tokenizer: Any, needles: int, rng: np.random.Generator, *, stated: bool) -> _Tokens:
    statements: list[_Tokens] = []
    questions: list[_Tokens] = []
    room = len(row)
    for fact in draw_facts(rng, needles):
        statement = [(token, _OTHER) for token in _encode(tokenizer, _STATEMENT.format(**fact)) if stated]
        question = list(_question(tokenizer, fact))
        if room - len(statement) - len(question) < len(row) // 2:
            break
        room -= len(statement) + len(question)
        statements.append(statement)
        questions.append(question)
    parts: list[tuple[int, _Tokens]] = []
    for asked, group in zip(_ASKED_AT, np.array_split(rng.permutation(len(statements)), 2), strict=True):
        end = round(asked * room)
        for number, fact in enumerate(group.tolist()):
            depth = (number + rng.random()) / len(group)
            parts.append((max(1, round(depth * end)), statements[fact]))
        # After the statements that stand at the same place.
        parts += [(end, questions[fact]) for fact in rng.permutation(group).tolist()]
    return joined([(token, _TEXT) for token in row[:room]], parts)


def _question(tokenizer: Any, fact: dict[str, str]) -> Iterator[tuple[int, int]]:
    """The tokens of a fact's question and its answer."""
    question = _encode(tokenizer, _QUESTION.format(**fact))
    whole = _encode(tokenizer, _QUESTION.format(**fact) + f" {fact['value']}")
    # Where the value's first token is merged with the question's last, the answer begins with that.
    start = next((i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b), len(question))
    for place, token in enumerate(whole):
        yield token, _ANSWER if place >= start else _OTHER


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
