"""Overlap with evaluation sets: word n-grams that a training document shares with text that is read for scores.

As in GPT-3's and RedPajama's own checks, 13 words in a row by default, in lower case and without punctuation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.documents import Document
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.words import Hashes, blocks, ngrams
from ropewalk.files import writing


@dataclass(frozen=True)
class Overlap:
    known: Hashes
    """Hashes of the evaluation sets' n-grams, rising, and the largest 64-bit number at the end."""
    words: int

    @classmethod
    def load(cls, path: str, words: int) -> "Overlap":
        return cls(np.load(path), words)

    def _hits(self, hashes: Hashes) -> NDArray[np.bool_]:
        return np.asarray(self.known[np.searchsorted(self.known, hashes)] == hashes)

    def count(self, texts: list[bytes]) -> NDArray[np.int64]:
        """(texts,): n-grams of each that the evaluation sets hold; together the texts fit into one block."""
        hashes, owner = ngrams(texts, self.words)
        return np.bincount(owner[self._hits(hashes)], minlength=len(texts))

    def count_long(self, pieces: Iterable[bytes]) -> int:
        """The same of one text of any length, in which an n-gram between two blocks may count twice."""
        return sum(int(self.count([block])[0]) for block in blocks(pieces, self.words))


def write_evaluation(shards: Sequence[Shard], path: Path, *, words: int) -> int:
    """Write the n-grams of all documents of the evaluation sets to ``path`` and return their number.

    Raises:
        ValueError: the sets hold no text of so many words.
    """
    found: list[Hashes] = [np.zeros(0, np.uint64)]
    for shard in shards:
        for _, document in shard.rows():
            if isinstance(document, Document):
                for block in blocks((piece.encode() for piece in document.pieces()), words):
                    found.append(np.unique(ngrams([block], words)[0]))
        found = [np.unique(np.concatenate(found))]
    if not len(found[0]):
        raise ValueError(f"corpus.evaluation_sets hold no text of {words} words; lower corpus.evaluation_words")
    with writing(path) as aside, aside.open("wb") as out:
        np.save(out, np.append(found[0], np.uint64(2**64 - 1)))
    return len(found[0])
