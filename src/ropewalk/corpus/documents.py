"""Documents: each row of JSON lines becomes one named text, and every row that does not is counted with its reason.

Plain, ``.zst`` and ``.gz`` files are read, in UTF-8, or in UTF-16 as Windows writes it, with the row formats of
RedPajama-V1 (all seven subsets) and of `ropewalk.corpus.identity`, or of other data whose keys are given.

A row is parsed by orjson. If orjson refuses it, json decides, because orjson accepts neither NaN nor numbers above 64
bits. A row of more than ``LONG_ROW`` bytes is never parsed whole: see `ropewalk.corpus.longrow`. datatrove's
JsonlReader reads the same 4,262 genuine rows more slowly (`benchmarks/corpus`), stops at a row that is not UTF-8, and
skips rows that are not JSON with nothing but a line in its log.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ropewalk.corpus.identity import identity, value_at
from ropewalk.corpus.lines import BROKEN, Lines, TooLong, is_remote
from ropewalk.corpus.longrow import LongText, read_long_row

LARGEST_ROW = 1 << 28
"""Size in bytes above which a row is rejected, so that memory is bounded."""
LONG_ROW = 1 << 24
"""Size in bytes from which a row is read in pieces."""
_SHOWN = 4096


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    name: str
    """Unique and stable: a url, an arXiv id, a repository path, or a hash of the text."""
    subset: str
    """Kind of text, as RedPajama calls it: arxiv, book, c4, common_crawl, github, stackexchange, wikipedia. Of other
    data, the name that the row gives, or "other".
    """
    text: str
    group: str
    """Documents of one group, such as the parts of one long text, always fall into the same split."""
    long_text: LongText | None = None
    """Replaces ``text`` if a string would take too much memory."""

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, in pieces that fit into memory."""
        if self.long_text is None:
            yield self.text
        else:
            yield from self.long_text.pieces()


@dataclass(frozen=True)
class Refused:
    """A row that yields no document."""

    reason: str
    size: int
    """Length of the row in bytes."""
    start: str
    """The first few kilobytes of the row; bytes that are not UTF-8 are escaped."""
    damaged: bool = True
    """False if the row is intact and left out because the configuration says so."""

    @classmethod
    def of(cls, line: bytes | bytearray, reason: str, *, damaged: bool = True) -> "Refused":
        return cls(reason, len(line), line[:_SHOWN].decode(errors="backslashreplace"), damaged)


@dataclass(frozen=True)
class Fields:
    """Keys of a row's text, id and subset; dots lead into inner objects ("meta.url")."""

    text: str = "text"
    id: str | None = None
    subset: str | None = None
    """By default, id and subset are taken from where common data sets have them (`ropewalk.corpus.identity`)."""


def parse(line: bytes | bytearray, fields: Fields) -> Document | Refused:
    """Parse a row that fits into memory several times over."""
    row, refused = load(line)
    if refused is not None:
        return refused
    text = row.get(fields.text) if isinstance(row, dict) else None
    if text is None and "." in fields.text and isinstance(row, dict):
        text = value_at(row, fields.text)
    if not isinstance(text, str):
        return Refused.of(line, "no text")
    if not text or text.isspace():
        return Refused.of(line, "empty text")
    if not (text.isascii() or _is_unicode(text)):
        return Refused.of(line, "text with lone surrogates")
    return named(row, fields, text=text)


def load(line: bytes | bytearray) -> tuple[Any, Refused | None]:
    """The value of a line of JSON, or the reason why it has none."""
    try:
        return orjson.loads(line), None
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line), None
    except UnicodeDecodeError:
        return None, Refused.of(line, "not UTF-8")
    except (ValueError, RecursionError):
        return None, Refused.of(line, "malformed JSON")


def named(row: dict[str, Any], fields: Fields, *, text: str = "", long_text: LongText | None = None) -> Document:
    """The document of a row, named by the row's id or, if it has none, by a hash of the text."""
    name, subset, group = identity(row)
    if fields.id is not None:
        value = value_at(row, fields.id)
        name, group = "" if value is None else str(value), None
    if fields.subset is not None:
        value = value_at(row, fields.subset)
        subset = str(value).strip() if isinstance(value, str | int) else ""
    if not name:
        digest = hashlib.sha256()
        for piece in [text] if long_text is None else long_text.pieces():
            digest.update(piece.encode())
        name = digest.hexdigest()
    return Document(name, subset or "other", text, group or name, long_text)


def _parse_long(line: bytes | bytearray, fields: Fields) -> Document | Refused:
    rest, text, reason = read_long_row(line, fields.text)
    if text is None:
        return Refused.of(line, reason or "no text")
    row, refused = load(rest)
    if refused is not None:
        return Refused.of(line, refused.reason)
    return named(row, fields, long_text=text)


def read_rows(
    path: str | Path, fields: Fields = Fields(), *, first: int = 1, lines: Lines | None = None
) -> Iterator[tuple[int, Document | Refused]]:
    """Yield (row number, document or the reason for refusing it) for every row that is not blank.

    Args:
        path: a local file or an fsspec URL.
        first: number of the first row to yield, counted from 1.
        lines: the file's lines, for a caller that wants to see how far they were read.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, or ends in the middle of a row or of its compressed stream.
    """
    for number, line in numbered_lines(path, first=first, lines=lines):
        if isinstance(line, TooLong):
            yield number, Refused(f"row above {LARGEST_ROW >> 20} MiB", line.size, "")
        elif len(line) >= LONG_ROW and "." not in fields.text:
            yield number, _parse_long(line, fields)
        else:
            yield number, parse(line, fields)


def numbered_lines(
    path: str | Path, *, first: int = 1, lines: Lines | None = None
) -> Iterator[tuple[int, bytes | bytearray | TooLong]]:
    """Yield (line number from 1, line) for every line from ``first`` on that is not blank.

    Raises:
        FileNotFoundError, ValueError: as in `read_rows`.
    """
    if not is_remote(str(path)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"corpus file {path} is not there; check corpus.path")
        if not Path(path).stat().st_size:
            raise ValueError(f"{path} is empty; fetch the file again")
    line: bytes | bytearray | TooLong = b"\n"
    number = 0
    lines = lines or Lines(str(path), largest=LARGEST_ROW)
    try:
        for number, line in enumerate(lines, start=1):
            if number >= first and (isinstance(line, TooLong) or not line.isspace()):
                yield number, line
    except BROKEN as error:
        raise ValueError(f"{path} cannot be decompressed after row {number} ({error}); fetch the file again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {error.encoding} after row {number}; save it as UTF-8") from None
    if not (line.ended if isinstance(line, TooLong) else line.endswith(b"\n") or _is_json(line)):
        raise ValueError(f"{path} is cut off in row {number}; fetch the file again")
    if not number:
        raise ValueError(f"{path} holds no rows; fetch the file again")


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8; JSON can spell half a surrogate pair, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(line: bytes | bytearray) -> bool:
    if len(line) >= LONG_ROW:
        # Parsing would take several times the size of the row; a row that is cut off does not end in a brace.
        return line.rstrip().endswith(b"}")
    return load(line)[1] is None
