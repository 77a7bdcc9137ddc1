"""Word n-grams of many texts at once, as 64-bit hashes: what near-duplicates and overlaps are found by.

A word is a run of letters, digits and bytes of other scripts, in lower case (ASCII). Its hash is a polynomial in
its bytes, so that all words of a megabyte are hashed by a few numpy calls: an order of magnitude faster than hashing
the joined words one by one, which is what datatrove and datasketch do (`benchmarks/corpus`).
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)
_NGRAM_BASE = np.uint64(0xD6E8FEB86659FD93)
BLOCK_BYTES = 1 << 20


def _lower() -> NDArray[np.uint8]:
    """Each byte in lower case, 0 where it is no part of a word."""
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
    """Every bit of each value spread over all 64 (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _word_hashes(data: NDArray[np.uint8]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash and first byte of every word in ``data`` (at most BLOCK_BYTES)."""
    own = _LOWER[data]
    inside = np.zeros(len(own) + 2, np.int8)
    inside[1:-1] = own != 0
    edges = np.flatnonzero(np.diff(inside))
    starts, ends = edges[::2], edges[1::2]
    sums = np.zeros(len(own) + 1, np.uint64)
    np.cumsum(own * _UP[: len(own)], out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * _DOWN[starts]), starts


def ngrams(texts: list[bytes], n: int) -> tuple[Hashes, NDArray[np.int64]]:
    """(hash, number of its text) of every n-gram of words; together the texts have at most BLOCK_BYTES."""
    joined = b"\n".join(texts)
    words, starts = _word_hashes(np.frombuffer(joined, np.uint8))
    if len(words) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    firsts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    owner = np.searchsorted(firsts, starts, side="right") - 1
    count = len(words) - n + 1
    found = words[:count].copy()
    for place in range(1, n):
        found = found * _NGRAM_BASE + words[place : place + count]
    whole = owner[:count] == owner[n - 1 :]
    return mixed(found[whole]), owner[:count][whole]


def blocks(pieces: Iterable[bytes], n: int) -> Iterator[bytes]:
    """A long text in blocks of at most BLOCK_BYTES that share n - 1 words, so that no n-gram is cut.

    An n-gram may be in two blocks; a word longer than half a block is cut.
    """
    half = BLOCK_BYTES // 2
    kept = b""
    for piece in pieces:
        for start in range(0, len(piece), half):
            block = kept + piece[start : start + half]
            yield block
            _, starts = _word_hashes(np.frombuffer(block, np.uint8))
            # The last word may go on in the next block; the n - 1 before it are complete.
            kept = block[starts[-n] if len(starts) >= n else 0 :][-half:]
