"""Duplicates: which documents are dropped because another one has the same id, the same text or nearly the same text.

Training documents that overlap an evaluation set are dropped before documents are compared.

The copy in the test split is kept first, then the one in the search split, so no training document is a copy of one
that is measured; within a split the first document of the corpus is kept. Memory grows by one byte per document: keys
are compared in several passes, each over a share of their values.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.minhash import BANDS, EMPTY, Signatures, band_keys, similarity
from ropewalk.corpus.parts import Part
from ropewalk.corpus.split import SPLITS, TRAIN

KEPT, SAME_ID, SAME_TEXT, NEARLY, OVERLAPPING = range(5)
REASONS = ("", "duplicate id", "duplicate", "near-duplicate", "overlaps an evaluation set")
PASS_DOCUMENTS = 4_000_000
FIRST = np.asarray([("test", "search", "train").index(split) for split in SPLITS])
"""Rank of each of `SPLITS`; of several copies of a document, that in the split of the lowest rank is kept."""


def find_duplicates(parts: Sequence[Part], *, exact: bool, near: float, overlaps: bool = False) -> NDArray[np.uint8]:
    """KEPT or the reason for dropping it, for every document of all parts in order: (documents,), uint8.

    Args:
        exact: whether to look for documents of the same text.
        near: similarity from which two documents count as nearly the same; 0 to not look for these.
        overlaps: whether the parts tell which documents overlap an evaluation set.
    """
    verdicts = np.zeros(sum(map(len, parts)), np.uint8)
    rank = np.concatenate([np.zeros(0, np.int64), *(FIRST[part.array("splits")] for part in parts)])
    if overlaps:
        verdicts[np.concatenate([part.array("overlaps") for part in parts]) & (rank == FIRST[TRAIN])] = OVERLAPPING
    _same_names(parts, verdicts, rank, exact=exact)
    if exact:
        for members, leaders, _ in _groups(parts, lambda part: part.array("keys")["text"], verdicts, rank):
            verdicts[members[members != leaders]] = SAME_TEXT
    if near:
        _near(parts, verdicts, rank, near)
    return verdicts


def _same_names(parts: Sequence[Part], verdicts: NDArray[np.uint8], rank: NDArray[np.int64], *, exact: bool) -> None:
    """Mark documents of the same id: a copy if the text is the same too, else a fault of the data."""
    firsts: list[NDArray[np.int64]] = []
    for members, leaders, _ in _groups(parts, lambda part: part.array("keys")["name"], verdicts, rank):
        firsts.append(np.stack([members, leaders], axis=1)[members != leaders])
    pairs = np.concatenate(firsts) if firsts else np.zeros((0, 2), np.int64)
    if not len(pairs):
        return
    texts = _rows(parts, lambda part: part.array("keys")["text"], np.unique(pairs))
    same = (texts(pairs[:, 0]) == texts(pairs[:, 1])).all(axis=1)
    verdicts[pairs[~same, 0]] = SAME_ID
    if exact:
        verdicts[pairs[same, 0]] = SAME_TEXT


def _near(parts: Sequence[Part], verdicts: NDArray[np.uint8], rank: NDArray[np.int64], near: float) -> None:
    """Compare each document with the first one and with the one before it among those that share a band."""
    for band in range(BANDS):
        keys = lambda part, band=band: _band(part, band)  # noqa: E731
        for members, leaders, before in _groups(parts, keys, verdicts, rank):
            for other in (leaders, before):
                pairs = np.stack([members, other], axis=1)[members != other]
                pairs = pairs[verdicts[pairs[:, 0]] == KEPT]
                for chunk in np.array_split(pairs, max(1, len(pairs) // 100_000)):
                    if len(chunk):
                        rows = _rows(parts, lambda part: part.array("signatures", mapped=True), np.unique(chunk))
                        alike = similarity(rows(chunk[:, 0]), rows(chunk[:, 1])) >= near
                        verdicts[chunk[alike, 0]] = NEARLY


def _band(part: Part, band: int) -> NDArray[np.uint64]:
    """Keys of one band, (documents, 2); a document without n-grams gets a key that no other has."""
    signature: Signatures = part.array("signatures")
    keys = np.stack([band_keys(signature, band), np.zeros(len(signature), np.uint64)], axis=1)
    empty = (signature == EMPTY).all(axis=1)
    keys[empty] = part.array("keys")["name"][empty]
    return keys


Keys = Callable[[Part], NDArray[np.uint64]]


def _groups(
    parts: Sequence[Part], keys: Keys, verdicts: NDArray[np.uint8], rank: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the numbers of kept documents that share a key, those to keep first, as three arrays.

    These are the documents, the first document with each one's key, and the document before each with the same key.
    """
    passes = np.uint64(len(verdicts) // PASS_DOCUMENTS + 1)
    for share in range(int(passes)):
        pass_keys, pass_members = [], []
        start = 0
        for part in parts:
            kept = verdicts[start : start + len(part)] == KEPT
            part_keys = keys(part)
            chosen = np.flatnonzero(kept & (part_keys[:, 0] % passes == np.uint64(share)))
            pass_keys.append(part_keys[chosen])
            pass_members.append(chosen + start)
            start += len(part)
        if not pass_members or not (members := np.concatenate(pass_members)).size:
            continue
        values = np.concatenate(pass_keys)
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
    """A function from numbers of documents to their rows in the parts' arrays.

    Args:
        wanted: the numbers that it can be asked for, in rising order; only their rows are held.
    """
    chosen, start = [], 0
    for part in parts:
        low, high = np.searchsorted(wanted, [start, start + len(part)])
        if high > low:
            chosen.append(values(part)[wanted[low:high] - start])
        start += len(part)
    rows = np.concatenate(chosen)
    return lambda numbers: rows[np.searchsorted(wanted, numbers)]
