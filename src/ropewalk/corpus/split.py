"""Splits: whether a document is for training, searching or testing, by a hash of the name of its group."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TRAIN, SEARCH, TEST = range(len(SPLITS))
"""Indices in `SPLITS`."""


def split_of(group: str, *, search_share: float, test_share: float, salt: str) -> Split:
    """The split of all documents of ``group``: the same on every machine, and unchanged when data is added."""
    digest = hashlib.sha256(f"{salt}:{group}".encode(errors="surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "search" if position < test_share + search_share else "train"


@dataclass(frozen=True)
class Shares:
    """Shares of the documents that the search and test splits take; training has the others."""

    search: float
    test: float

    def split(self, groups: Iterable[str], salt: str) -> NDArray[np.uint8]:
        """Index in `SPLITS` of the split of each of the groups under a salt."""
        splits = (split_of(group, search_share=self.search, test_share=self.test, salt=salt) for group in groups)
        return np.fromiter(map(SPLITS.index, splits), np.uint8)
