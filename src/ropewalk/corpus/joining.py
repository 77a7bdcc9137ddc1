"""Joining: documents that are shorter than the length that is read are joined with others of their subset."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class TokenSpan:
    """A document's tokens in a file."""

    name: str
    subset: str
    path: Path
    start: int
    """Byte of the file that the tokens begin at."""
    length: int
    """Number of tokens."""
    token_bytes: int
    """Size of a token in bytes."""


def joined(spans: Iterable[TokenSpan], *, tokens: int) -> Iterator[list[TokenSpan]]:
    """Yield long documents alone, and those of fewer than ``tokens`` tokens with others until they have so many.

    Documents of one subset are joined, in their order; what is left of it at the end is yielded though it is shorter.
    """
    waiting: dict[str, list[TokenSpan]] = defaultdict(list)
    lengths = Counter[str]()
    for span in spans:
        if span.length >= tokens:
            yield [span]
            continue
        waiting[span.subset].append(span)
        lengths[span.subset] += span.length
        if lengths[span.subset] >= tokens:
            del lengths[span.subset]
            yield waiting.pop(span.subset)
    yield from waiting.values()


def read_joined(spans: Sequence[TokenSpan], between: bytes) -> Iterator[bytes]:
    """Yield the tokens of documents one after another in pieces, with ``between`` between two documents."""
    for place, span in enumerate(spans):
        if place:
            yield between
        with span.path.open("rb") as source:
            source.seek(span.start)
            remaining = span.length * span.token_bytes
            while remaining:
                piece = source.read(min(remaining, _COPY_BYTES))
                remaining -= len(piece)
                yield piece
