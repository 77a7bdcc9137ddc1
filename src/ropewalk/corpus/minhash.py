"""MinHash signatures and the pairs of documents that they hold for near-duplicates.

One permutation hashing with optimal densification (Shrivastava, 1703.04664): each n-gram's hash falls into one of
128 bins, of which the least value is kept, so the cost is that of hashing once in place of 112 times. Measured on
the genuine rows of RedPajama-V1 (`benchmarks/corpus`): twelve times as fast as datasketch, which hashes n-grams one by
one and permutes them with numpy, as datatrove's MinhashDedupSignature does. datatrove also needs a word tokenizer of
spaCy or NLTK for every language, writes its signatures for four jobs in a row, and keeps one document of a cluster at
random; here the splits decide which one is kept. What it has and this has not is clusters of machines.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.words import BLOCK_BYTES, Hashes, blocks, ngrams

BINS = 128
BANDS, ROWS = 20, 6
"""At a similarity of 0.8 a pair shares a band with a probability of 0.997, at 0.5 of 0.27."""
WORDS = 5
"""Of an n-gram."""
EMPTY = np.uint16(2**16 - 1)
Signatures = NDArray[np.uint16]


def _alternatives() -> NDArray[np.int64]:
    """(attempts, BINS): where an empty bin looks for a value, one try after the other."""
    rng = np.random.default_rng(1703_04664)
    drawn = [rng.permutation(BINS) for _ in range(64)]
    turned = [(np.arange(BINS) + step) % BINS for step in range(1, BINS)]
    return np.asarray([*drawn, *turned])


_ALTERNATIVES = _alternatives()


def _minima(hashes: Hashes, owner: NDArray[np.int64], documents: int) -> Signatures:
    """(documents, BINS): the least value in every bin, EMPTY where there is none."""
    least = np.full(documents * BINS, EMPTY, np.uint16)
    place = owner * BINS + (hashes >> np.uint64(57)).astype(np.int64)
    np.minimum.at(least, place, (hashes >> np.uint64(32)).astype(np.uint16))
    return least.reshape(documents, BINS)


def _dense(least: Signatures) -> Signatures:
    """Empty bins take the value of another; a document without n-grams stays EMPTY."""
    full = least.copy()
    for places in _ALTERNATIVES:
        empty = full == EMPTY
        if not empty[(least != EMPTY).any(axis=1)].any():
            break
        full = np.where(empty, least[:, places], full)
    return full


def signatures(texts: list[bytes]) -> Signatures:
    """(texts, BINS) of texts of at most BLOCK_BYTES together."""
    return _dense(_minima(*ngrams(texts, WORDS), documents=len(texts)))


def long_signature(pieces: Iterable[bytes]) -> Signatures:
    """(BINS,) of one text of any length."""
    least = np.full((1, BINS), EMPTY, np.uint16)
    for block in blocks(pieces, WORDS):
        least = np.minimum(least, _minima(*ngrams([block], WORDS), documents=1))
    return np.asarray(_dense(least)[0])


def band_keys(signature: Signatures, band: int) -> Hashes:
    """One 64-bit key a document; documents that share it in any band are compared."""
    key = np.zeros(len(signature), np.uint64)
    for row in range(ROWS):
        key = key * np.uint64(0x9E3779B97F4A7C15) + signature[:, band * ROWS + row].astype(np.uint64) + np.uint64(1)
    return key


def similarity(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """Share of the n-grams that two documents have in common, estimated row by row."""
    return np.asarray((one == other).mean(axis=1))


__all__ = ["BANDS", "BLOCK_BYTES", "EMPTY", "Signatures", "band_keys", "long_signature", "signatures", "similarity"]
