"""Shards: the files of a source, and the rows of each as documents through one reader."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ropewalk.corpus.documents import LARGEST_ROW, Document, Fields, Refused, read_rows
from ropewalk.corpus.lines import Lines
from ropewalk.corpus.quality import Rules
from ropewalk.corpus.redpajama_v2 import read_v2

Rows = Iterator[tuple[int, Document | Refused]]


@dataclass(frozen=True)
class Shard:
    path: str
    """A local file or an fsspec URL."""
    kind: str = "jsonl"
    """jsonl, text or redpajama_v2."""
    size: int = 0
    """Bytes as stored; 0 where unknown."""
    label: str = ""
    """Of its source in a mixture; goes before the subset."""
    text_field: str = "text"
    id_field: str | None = None
    tag: str = ""
    """redpajama_v2: SNAPSHOT/NUMBER/LANGUAGE_BUCKET."""
    signals: str | None = None
    """redpajama_v2: file of quality signals."""
    duplicates: str | None = None
    """redpajama_v2: file of duplicates' ids."""
    quality: Rules = field(default_factory=dict)

    def rows(self, *, first: int = 1, lines: Lines | None = None) -> Rows:
        """(number from 1, document or why there is none) from row ``first`` on; raises what `read_rows` does."""
        lines = lines or self.lines()
        if self.kind == "text":
            found: Rows = _read_text(self.path) if first == 1 else iter(())
        elif self.kind == "redpajama_v2":
            found = read_v2(self.path, self.tag, self.signals, self.duplicates, self.quality, first=first, lines=lines)
        else:
            found = read_rows(self.path, Fields(self.text_field, self.id_field), first=first, lines=lines)
        return self._labelled(found) if self.label else found

    def lines(self) -> Lines:
        return Lines(self.path, largest=LARGEST_ROW)

    def _labelled(self, rows: Rows) -> Rows:
        for number, found in rows:
            if isinstance(found, Document):
                found = replace(found, subset=f"{self.label}/{found.subset}", name=f"{self.label}:{found.name}")
            yield number, found


def _read_text(path: str) -> Rows:
    """A whole file as one document; bytes that are not UTF-8 become U+FFFD."""
    text, name = Path(path).read_text(encoding="utf-8", errors="replace"), Path(path).name
    if text.strip():
        yield 1, Document(name=name, subset="text", text=text, group=name)
    else:
        yield 1, Refused("empty text", Path(path).stat().st_size, "")


def with_subsets(rows: Rows, subsets: tuple[str, ...]) -> Rows:
    """Only documents of these subsets; all where none are named."""
    return itertools.filterfalse(
        lambda row: bool(subsets) and isinstance(row[1], Document) and row[1].subset not in subsets, rows
    )
