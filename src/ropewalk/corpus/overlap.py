"""Overlap with evaluation sets: word n-grams of a training document that also occur in a text used for evaluation.

As in the checks of GPT-3 and RedPajama, an n-gram has 13 words by default, in lower case and without punctuation.
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
    """The n-grams of the evaluation sets."""

    known: Hashes
    """Hashes of the n-grams in rising order, followed by the largest 64-bit number."""
    words: int
    """Number of words in an n-gram."""

    @classmethod
    def load(cls, path: str, words: int) -> "Overlap":
        return cls(np.load(path), words)

    def _hits(self, hashes: Hashes) -> NDArray[np.bool_]:
        return np.asarray(self.known[np.searchsorted(self.known, hashes)] == hashes)

    def count(self, texts: list[bytes]) -> NDArray[np.int64]:
        """Number of n-grams of each text that the evaluation sets hold, (texts,); the texts must fit into one block."""
        hashes, owner = ngrams(texts, self.words)
        return np.bincount(owner[self._hits(hashes)], minlength=len(texts))

    def count_long(self, pieces: Iterable[bytes]) -> int:
        """The same number for one text of any length; an n-gram where two blocks meet may count twice."""
        return sum(int(self.count([block])[0]) for block in blocks(pieces, self.words))


def write_evaluation(shards: Sequence[Shard], path: Path, *, words: int) -> int:
    """Write the n-grams of all documents of the evaluation sets to ``path`` and return their number.

    Raises:
        ValueError: no text of the sets has that many words.
    """
    hashes: list[Hashes] = [np.zeros(0, np.uint64)]
    for shard in shards:
        for _, document in shard.rows():
            if isinstance(document, Document):
                for block in blocks((piece.encode() for piece in document.pieces()), words):
                    hashes.append(np.unique(ngrams([block], words)[0]))
        hashes = [np.unique(np.concatenate(hashes))]
    if not len(hashes[0]):
        raise ValueError(f"corpus.evaluation_sets hold no text of {words} words; lower corpus.evaluation_words")
    with writing(path) as aside, aside.open("wb") as out:
        np.save(out, np.append(hashes[0], np.uint64(2**64 - 1)))
    return len(hashes[0])
