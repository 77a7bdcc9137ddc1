"""Word n-grams of many texts at once, as 64-bit hashes by which near-duplicates and overlaps are found.

A word is a sequence of letters, digits and non-ASCII bytes, with ASCII letters in lower case. Its hash is a polynomial
in its bytes, so that a few numpy calls hash all words of a megabyte. This is an order of magnitude faster than hashing
the joined words one by one, as datatrove and datasketch do (`benchmarks/corpus`).
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)
_NGRAM_BASE = np.uint64(0xD6E8FEB86659FD93)
BLOCK_BYTES = 1 << 20
"""Number of bytes that can be hashed at once."""


def _lower() -> NDArray[np.uint8]:
    """Table of all bytes in lower case, 0 for those that are not part of a word."""
    table = np.zeros(256, np.uint8)
    table[128:] = np.arange(128, 256)
    for byte in range(128):
        if chr(byte).isalnum():
            table[byte] = ord(chr(byte).lower())
    return table


_LOWER = _lower()


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


_UP, _DOWN = _powers(_BASE, BLOCK_BYTES), _powers(_INVERSE, BLOCK_BYTES)


def mixed(values: Hashes) -> Hashes:
    """Spread every bit of each value over all 64 bits, as the finaliser of splitmix64 does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _word_hashes(data: NDArray[np.uint8]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash and index of the first byte of every word in ``data``, which has at most BLOCK_BYTES."""
    lower = _LOWER[data]
    inside = np.zeros(len(lower) + 2, np.int8)
    inside[1:-1] = lower != 0
    edges = np.flatnonzero(np.diff(inside))
    starts, ends = edges[::2], edges[1::2]
    sums = np.zeros(len(lower) + 1, np.uint64)
    np.cumsum(lower * _UP[: len(lower)], out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * _DOWN[starts]), starts


def ngrams(texts: list[bytes], n: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash and number of the text of every n-gram of words; the texts have at most BLOCK_BYTES in total."""
    joined = b"\n".join(texts)
    words, starts = _word_hashes(np.frombuffer(joined, np.uint8))
    if len(words) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    firsts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    owner = np.searchsorted(firsts, starts, side="right") - 1
    count = len(words) - n + 1
    hashes = words[:count].copy()
    for place in range(1, n):
        hashes = hashes * _NGRAM_BASE + words[place : place + count]
    whole = owner[:count] == owner[n - 1 :]
    return mixed(hashes[whole]), owner[:count][whole]


def blocks(pieces: Iterable[bytes], n: int) -> Iterator[bytes]:
    """Yield a long text in blocks of at most BLOCK_BYTES that share n - 1 words, so that no n-gram is lost.

    An n-gram may be in two blocks, and a word longer than half a block is cut.
    """
    half = BLOCK_BYTES // 2
    kept = b""
    for piece in pieces:
        for start in range(0, len(piece), half):
            block = kept + piece[start : start + half]
            yield block
            _, starts = _word_hashes(np.frombuffer(block, np.uint8))
            # The last word may continue in the next block; the n - 1 words before it are complete.
            kept = block[starts[-n] if len(starts) >= n else 0 :][-half:]
