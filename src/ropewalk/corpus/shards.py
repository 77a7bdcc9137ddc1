"""Shards: the files of a source, and the rows of each as documents through the reader that the shard names."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name

from ropewalk.corpus.documents import LARGEST_ROW, Document, Fields, Refused, read_rows
from ropewalk.corpus.lines import Lines
from ropewalk.corpus.quality import Rules

Rows = Iterator[tuple[int, Document | Refused]]
JSON_LINES = "ropewalk.corpus.shards:json_rows"
TEXT = "ropewalk.corpus.shards:text_rows"
REDPAJAMA_V2 = "ropewalk.corpus.redpajama_v2:shard_rows"


@dataclass(frozen=True)
class Shard:
    """One file of a source. It is sent to worker processes as JSON."""

    path: str
    """A local file or an fsspec URL."""
    reader: str = JSON_LINES
    """Where to import the function from that reads the file: ``"package.module:name"``. It is called as
    ``reader(shard, first=first, lines=lines)`` and returns what `rows` does, without the label.
    """
    size: int = 0
    """Bytes as stored; 0 if unknown."""
    label: str = ""
    """Label of the source in a mixture; it is put before the subset."""
    text_field: str = "text"
    """JSON lines: name of a row's text; dots lead into inner objects."""
    id_field: str | None = None
    """JSON lines: name of a row's id, as in `ropewalk.corpus.documents.Fields`."""
    subset_field: str | None = None
    """JSON lines: name of a row's subset, as in `ropewalk.corpus.documents.Fields`."""
    name: str = ""
    """Text: name of the document; by default the file's."""
    tag: str = ""
    """RedPajama-V2: SNAPSHOT/NUMBER/LANGUAGE_BUCKET."""
    signals: str | None = None
    """RedPajama-V2: file with the quality signals."""
    duplicates: str | None = None
    """RedPajama-V2: file with the ids of duplicates."""
    quality: Rules = field(default_factory=dict)
    """RedPajama-V2: bounds on the quality signals."""

    def rows(self, *, first: int = 1, lines: Lines | None = None) -> Rows:
        """Yield (row number, document or the reason for refusing it) from row ``first`` on, counted from 1.

        Args:
            lines: the file's lines, for a caller that wants to see how far they were read.

        Raises:
            FileNotFoundError, ValueError: as in `ropewalk.corpus.documents.read_rows`.
        """
        for number, row in resolve_name(self.reader)(self, first=first, lines=lines or self.lines()):
            if self.label and isinstance(row, Document):
                row = replace(row, subset=f"{self.label}/{row.subset}", name=f"{self.label}:{row.name}")
            yield number, row

    def lines(self) -> Lines:
        return Lines(self.path, largest=LARGEST_ROW)


def read_documents(shards: Iterable[Shard]) -> Iterator[Document]:
    """Yield the documents of the shards in order, without the rows that are refused.

    Raises:
        FileNotFoundError, ValueError: as in `ropewalk.corpus.documents.read_rows`.
    """
    for shard in shards:
        yield from (row for _, row in shard.rows() if isinstance(row, Document))


def json_rows(shard: Shard, *, first: int, lines: Lines) -> Rows:
    """Rows of JSON lines."""
    fields = Fields(shard.text_field, shard.id_field, shard.subset_field)
    return read_rows(shard.path, fields, first=first, lines=lines)


def text_rows(shard: Shard, *, first: int, lines: Lines) -> Rows:
    """A whole text file as one row, in UTF-8 or UTF-16; bytes that are neither become U+FFFD."""
    if first > 1:
        return
    path = Path(shard.path)
    data = path.read_bytes()
    # Universal newlines, as in reading a text file.
    text = io.TextIOWrapper(io.BytesIO(data), json.detect_encoding(data), errors="replace").read()
    if text.strip():
        name = shard.name or path.name
        yield 1, Document(name=name, subset="text", text=text, group=name)
    else:
        yield 1, Refused("empty text", path.stat().st_size, "")
