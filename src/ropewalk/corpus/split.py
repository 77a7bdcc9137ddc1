"""Splits: which of train, search and test a document belongs to, by a hash of its group's name."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(group: str, *, search_share: float, test_share: float, salt: str) -> Split:
    """The split of every document of ``group``: the same on every machine, and stable when data is added."""
    digest = hashlib.sha256(f"{salt}:{group}".encode(errors="surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "search" if position < test_share + search_share else "train"
