"""Which documents are dropped because another one is kept: the same id, the same text, or nearly the same text.

A document of the test split goes before one of the search split, and that before training, so nothing that is
trained on is a copy of what is measured; within a split the first in the corpus is kept. Memory does not grow with
the corpus beyond a byte a document: keys are compared in passes over a share of their values each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.minhash import BANDS, EMPTY, Signatures, band_keys, similarity
from ropewalk.corpus.parts import Part
from ropewalk.corpus.split import SPLITS

KEPT, SAME_ID, SAME_TEXT, NEARLY = range(4)
REASONS = ("", "duplicate id", "duplicate", "near-duplicate")
PASS_DOCUMENTS = 4_000_000
_FIRST = np.asarray([("test", "search", "train").index(split) for split in SPLITS])


def find_duplicates(parts: Sequence[Part], *, exact: bool, near: float) -> NDArray[np.uint8]:
    """KEPT or the reason, for every document of all parts in order.

    Args:
        near: similarity from which two documents count as nearly the same, 0 to leave that out.
    """
    total = sum(map(len, parts))
    found = np.zeros(total, np.uint8)
    rank = np.concatenate([np.zeros(0, np.int64), *(_FIRST[part.array("splits")] for part in parts)])
    _same_names(parts, found, rank, exact=exact)
    if exact:
        for members, leaders, _ in _groups(parts, lambda part: part.array("keys")["text"], found, rank):
            found[members[members != leaders]] = SAME_TEXT
    if near:
        _near(parts, found, rank, near)
    return found


def _same_names(parts: Sequence[Part], found: NDArray[np.uint8], rank: NDArray[np.int64], *, exact: bool) -> None:
    """The same id and text is a copy; the same id over another text is a fault of the data."""
    firsts: list[NDArray[np.int64]] = []
    for members, leaders, _ in _groups(parts, lambda part: part.array("keys")["name"], found, rank):
        firsts.append(np.stack([members, leaders], axis=1)[members != leaders])
    pairs = np.concatenate(firsts) if firsts else np.zeros((0, 2), np.int64)
    if not len(pairs):
        return
    texts = _rows(parts, lambda part: part.array("keys")["text"], np.unique(pairs))
    one, other = (texts(pairs[:, side]) for side in (0, 1))
    same = (one == other).all(axis=1)
    found[pairs[~same, 0]] = SAME_ID
    if exact:
        found[pairs[same, 0]] = SAME_TEXT


def _near(parts: Sequence[Part], found: NDArray[np.uint8], rank: NDArray[np.int64], near: float) -> None:
    for band in range(BANDS):
        keys = lambda part, band=band: _band(part, band)  # noqa: E731
        for members, leaders, before in _groups(parts, keys, found, rank):
            for other in (leaders, before):
                pairs = np.stack([members, other], axis=1)[members != other]
                pairs = pairs[found[pairs[:, 0]] == KEPT]
                for chunk in np.array_split(pairs, max(1, len(pairs) // 100_000)):
                    if len(chunk):
                        rows = _rows(parts, lambda part: part.array("signatures", mapped=True), np.unique(chunk))
                        alike = similarity(rows(chunk[:, 0]), rows(chunk[:, 1])) >= near
                        found[chunk[alike, 0]] = NEARLY


def _band(part: Part, band: int) -> NDArray[np.uint64]:
    """(documents, 2): a band's key; documents without n-grams get one of their own."""
    signature: Signatures = part.array("signatures")
    keys = np.stack([band_keys(signature, band), np.zeros(len(signature), np.uint64)], axis=1)
    mute = (signature == EMPTY).all(axis=1)
    keys[mute] = part.array("keys")["name"][mute]
    return keys


Keys = Callable[[Part], NDArray[np.uint64]]


def _groups(
    parts: Sequence[Part], keys: Keys, found: NDArray[np.uint8], rank: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """(members, leader of each, the member before each) of kept documents that share a key, first ones first."""
    passes = np.uint64(len(found) // PASS_DOCUMENTS + 1)
    for share in range(int(passes)):
        own_keys, own = [], []
        start = 0
        for part in parts:
            kept = found[start : start + len(part)] == KEPT
            part_keys = keys(part)
            chosen = np.flatnonzero(kept & (part_keys[:, 0] % passes == np.uint64(share)))
            own_keys.append(part_keys[chosen])
            own.append(chosen + start)
            start += len(part)
        if not own or not (members := np.concatenate(own)).size:
            continue
        values = np.concatenate(own_keys)
        order = np.lexsort((members, rank[members], values[:, 1], values[:, 0]))
        members, values = members[order], values[order]
        new = np.ones(len(members), bool)
        new[1:] = (values[1:] != values[:-1]).any(axis=1)
        starts = np.flatnonzero(new)
        leaders = members[np.repeat(starts, np.diff(np.append(starts, len(members))))]
        before = np.where(new, members, np.roll(members, 1))
        grouped = ~new | ~np.append(new[1:], True)
        yield members[grouped], leaders[grouped], before[grouped]


def _rows(
    parts: Sequence[Part], values: Callable[[Part], NDArray[Any]], wanted: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    """Rows of all parts' arrays by number of document, for the rising numbers ``wanted`` alone."""
    taken, start = [], 0
    for part in parts:
        low, high = np.searchsorted(wanted, [start, start + len(part)])
        if high > low:
            taken.append(values(part)[wanted[low:high] - start])
        start += len(part)
    rows = np.concatenate(taken)
    return lambda numbers: rows[np.searchsorted(wanted, numbers)]
