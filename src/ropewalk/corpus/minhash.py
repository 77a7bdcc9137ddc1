"""MinHash signatures, from which near-duplicates are found.

One permutation hashing with optimal densification (Shrivastava, 1703.04664): the hash of each n-gram falls into one of
128 bins, each bin keeps its minimum, and every n-gram is hashed once instead of 112 times. On genuine rows of
RedPajama-V1 (`benchmarks/corpus`) this is twelve times as fast as datasketch, which hashes n-grams one by one and
permutes the hashes with numpy, as datatrove's MinhashDedupSignature does. datatrove also needs a word tokenizer of
spaCy or NLTK for each language, runs four jobs in sequence, and keeps a random document of each cluster, where the
splits decide here. Unlike datatrove, this module does not run on several machines.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.words import Hashes, blocks, ngrams

BINS = 128
BANDS, ROWS = 20, 6
"""At a similarity of 0.8 a pair shares a band with a probability of 0.997, at 0.5 of 0.27."""
WORDS = 5
"""Number of words in an n-gram."""
EMPTY = np.uint16(2**16 - 1)
Signatures = NDArray[np.uint16]


def _alternatives() -> NDArray[np.int64]:
    """(attempts, BINS): the bins in which an empty bin looks for a value, one after the other."""
    rng = np.random.default_rng(1703_04664)
    permutations = [rng.permutation(BINS) for _ in range(64)]
    rotations = [(np.arange(BINS) + step) % BINS for step in range(1, BINS)]
    return np.asarray([*permutations, *rotations])


_ALTERNATIVES = _alternatives()


def _minima(hashes: Hashes, owner: NDArray[np.int64], documents: int) -> Signatures:
    """(documents, BINS): the minimum of every bin, EMPTY in bins without values."""
    minima = np.full(documents * BINS, EMPTY, np.uint16)
    place = owner * BINS + (hashes >> np.uint64(57)).astype(np.int64)
    np.minimum.at(minima, place, (hashes >> np.uint64(32)).astype(np.uint16))
    return minima.reshape(documents, BINS)


def _dense(minima: Signatures) -> Signatures:
    """Fill empty bins with the value of another bin; a document without n-grams stays EMPTY."""
    dense = minima.copy()
    for places in _ALTERNATIVES:
        empty = dense == EMPTY
        if not empty[(minima != EMPTY).any(axis=1)].any():
            break
        dense = np.where(empty, minima[:, places], dense)
    return dense


def signatures(texts: list[bytes]) -> Signatures:
    """Signatures (texts, BINS) of texts that have at most BLOCK_BYTES in total."""
    return _dense(_minima(*ngrams(texts, WORDS), documents=len(texts)))


def long_signature(pieces: Iterable[bytes]) -> Signatures:
    """Signature (BINS,) of one text of any length."""
    minima = np.full((1, BINS), EMPTY, np.uint16)
    for block in blocks(pieces, WORDS):
        minima = np.minimum(minima, _minima(*ngrams([block], WORDS), documents=1))
    return np.asarray(_dense(minima)[0])


def band_keys(signature: Signatures, band: int) -> Hashes:
    """One 64-bit key per document, (documents,); documents with the same key in any band are compared."""
    key = np.zeros(len(signature), np.uint64)
    for row in range(ROWS):
        key = key * np.uint64(0x9E3779B97F4A7C15) + signature[:, band * ROWS + row].astype(np.uint64) + np.uint64(1)
    return key


def similarity(left: Signatures, right: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of the n-grams of two documents, for each pair of rows: (pairs,)."""
    return np.asarray((left == right).mean(axis=1))
