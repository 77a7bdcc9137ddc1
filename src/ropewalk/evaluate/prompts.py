"""Pieces that every recall prompt is made of: token ids without special tokens, BOS, and where two texts part."""

from collections.abc import Sequence
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text``, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def first_id(tokenizer: Any) -> int:
    """BOS, or EOS of a tokenizer that has none."""
    first: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return first


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids the two begin with alike.

    A tokenizer may join the end of a question and the beginning of its answer, so that the question with the answer
    does not begin with the question's own ids.
    """
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
