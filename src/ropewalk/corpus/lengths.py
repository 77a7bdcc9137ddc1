"""Lengths of a corpus's longest documents in tokens, estimated from a sample of them before anything is tokenised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.parts import Part
from ropewalk.corpus.tokenise import Encode

MOST_DOCUMENTS = 100_000
"""Number of documents above which only the longest ones are looked at, so that memory is bounded."""
_SAMPLED = 64
"""Number of documents of which a sample is tokenised."""
_SLICE_BYTES = 1 << 14
"""Size of each of the samples from the beginning, the middle and the end of a document."""
_MARGIN = 0.08
"""Share by which a document may have fewer or more tokens than its sample says."""


@dataclass(frozen=True)
class LongestDocuments:
    """The longest documents of a corpus in the order of the corpus; all arrays are (documents,)."""

    places: NDArray[np.int64]
    """Number of each among all documents of the corpus."""
    subsets: NDArray[np.str_]
    groups: NDArray[np.object_]
    texts: NDArray[np.int64]
    """A number that documents of the same text share."""
    low: NDArray[np.int64]
    """Number of tokens that each has at least."""
    high: NDArray[np.int64]
    """Number of tokens that each has at most."""
    total: int
    """Number of all documents of the corpus."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: NDArray[Any]) -> Self:
        """The documents of a mask, or those with the given indices."""
        names = ("places", "subsets", "groups", "texts", "low", "high")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    @property
    def longest(self) -> int:
        """About the number of tokens of the longest document."""
        return int((self.low + self.high).max(initial=0)) // 2


def longest_documents(parts: Sequence[Part], encode: Encode, *, long_tokens: int) -> LongestDocuments:
    """Estimate the lengths of the longest documents of all parts.

    Samples are taken from documents that may have ``long_tokens`` tokens, as no token is shorter than a byte, or from
    the longest ones where these are few. A document that is not sampled is assumed to be like one of those that are.
    """
    sizes, places = _longest(parts)
    by_size = np.lexsort((places, -sizes))
    candidates = by_size[: max(_SAMPLED, int((sizes >= long_tokens).sum()))]
    sampled = np.unique(candidates[np.linspace(0, len(candidates) - 1, min(_SAMPLED, len(candidates))).astype(int)])
    first, subsets, groups, keys, texts, counts = 0, [], [], [], [], []
    for part in parts:
        in_part = np.flatnonzero((places >= first) & (places < first + len(part)))
        if len(in_part):
            numbers = places[in_part] - first
            names, part_groups = part.documents(), part.groups()
            subsets += [names[number][1] for number in numbers]
            groups += [part_groups[number] for number in numbers]
            keys.append(part.array("keys")["text"][numbers])
            for slices, size in _samples(part, places[np.intersect1d(in_part, sampled)] - first):
                texts += slices
                counts.append((len(slices), size))
        first += len(part)
    tokens = iter([len(ids) for ids in encode(texts)])
    # Tokens per byte of each sampled document.
    density = np.asarray([sum(next(tokens) for _ in range(count)) / size for count, size in counts])
    low = sizes * density.min(initial=1.0) * (1 - _MARGIN)
    high = sizes * density.max(initial=0.0) * (1 + _MARGIN)
    is_whole = sizes[sampled] <= 3 * _SLICE_BYTES
    low[sampled] = sizes[sampled] * density * np.where(is_whole, 1, 1 - _MARGIN)
    high[sampled] = sizes[sampled] * density * np.where(is_whole, 1, 1 + _MARGIN)
    same = np.unique(np.concatenate(keys), axis=0, return_inverse=True)[1] if keys else np.zeros(0, np.int64)
    return LongestDocuments(
        places=places,
        subsets=np.asarray(subsets, np.str_),
        groups=np.asarray(groups, np.object_),
        texts=same.reshape(-1),
        # Whole samples have whole numbers of tokens, but for rounding.
        low=(low + 1e-6).astype(np.int64),
        high=np.ceil(high - 1e-6).astype(np.int64),
        total=first,
    )


def _longest(parts: Sequence[Part]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes in bytes and numbers of the longest documents, in the order of the corpus."""
    sizes, places, first = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    for part in parts:
        sizes = np.append(sizes, np.diff(part.array("ends"), prepend=0))
        places = np.append(places, np.arange(first, first + len(part)))
        first += len(part)
        if len(sizes) > MOST_DOCUMENTS:
            kept = np.sort(np.lexsort((places, -sizes))[:MOST_DOCUMENTS])
            sizes, places = sizes[kept], places[kept]
    return sizes, places


def _samples(part: Part, numbers: NDArray[np.int64]) -> Iterator[tuple[list[str], int]]:
    """Yield the samples of each of these documents of a part, and their size in bytes."""
    ends = part.array("ends")
    with (part.path / "text.bin").open("rb") as source:
        for number in numbers.tolist():
            start, end = int(ends[number - 1]) if number else 0, int(ends[number])
            slices = [(start, end)]
            if end - start > 3 * _SLICE_BYTES:
                middle = (start + end - _SLICE_BYTES) // 2
                slices = [(place, place + _SLICE_BYTES) for place in (start, middle, end - _SLICE_BYTES)]
            texts = []
            for low, high in slices:
                source.seek(low)
                texts.append(source.read(high - low).decode(errors="ignore"))
            yield texts, sum(high - low for low, high in slices)
