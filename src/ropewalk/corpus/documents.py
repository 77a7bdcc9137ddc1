"""Documents: one row of JSON lines in, one named text out, nothing dropped without being counted.

Reads plain, ``.zst`` and ``.gz`` JSON lines with the row shapes of RedPajama-V1 (all seven subsets), or of any
other data whose text and id lie under names of their own.

A row is parsed by orjson and, where that refuses it, by json, whose verdict counts (orjson knows no NaN and no
numbers above 64 bits). A row of more than ``LONG_ROW`` bytes is never parsed whole: see `ropewalk.corpus.longrow`.
datatrove's JsonlReader reads the same 4,262 genuine rows slower (`benchmarks/corpus`), stops at a row that is not
UTF-8, and passes over rows that are not JSON with nothing but a line in its log.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ropewalk.corpus.lines import BROKEN, Lines, TooLong, is_remote
from ropewalk.corpus.longrow import LongText, read_long_row

LARGEST_ROW = 1 << 28
"""Bytes of a row above which it is rejected: what bounds memory."""
LONG_ROW = 1 << 24
"""Bytes of a row from which it is read in pieces."""
_SHOWN = 4096


@dataclass(frozen=True)
class Document:
    name: str
    """Unique and stable: a url, an arXiv id, a repository path, or a hash of the text."""
    subset: str
    """RedPajama's name of the source: arxiv, book, c4, common_crawl, github, stackexchange, wikipedia."""
    text: str
    group: str
    """Documents of one group always fall into the same split (the parts of one long text, say)."""
    long_text: LongText | None = None
    """In place of ``text`` where that would take much memory."""

    def pieces(self) -> Iterator[str]:
        """The text in order, in pieces that fit into memory."""
        if self.long_text is None:
            yield self.text
        else:
            yield from self.long_text.pieces()


@dataclass(frozen=True)
class Refused:
    """A row that gives no document."""

    reason: str
    size: int
    """Bytes of the row."""
    start: str
    """What it begins with, bytes that are not UTF-8 escaped."""
    damaged: bool = True
    """False where the configuration asks for its being left out."""

    @classmethod
    def of(cls, line: bytes | bytearray, reason: str, *, damaged: bool = True) -> "Refused":
        return cls(reason, len(line), line[:_SHOWN].decode(errors="backslashreplace"), damaged)


@dataclass(frozen=True)
class Fields:
    """Where a row keeps its text and its id; dots lead into inner objects ("meta.url")."""

    text: str = "text"
    id: str | None = None
    """RedPajama-V1's own places by default."""


def value_at(row: dict[str, Any], field: str) -> Any:
    found: Any = row
    for name in field.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def identity(row: dict[str, Any]) -> tuple[str, str, str | None]:
    """(name, subset, group) of a row of RedPajama-V1; no name where none is known, no group where it is the name."""
    found = row.get("meta")
    meta: dict[str, Any] = found if isinstance(found, dict) else {}
    if "arxiv_id" in meta:
        return f"arxiv:{meta['arxiv_id']}", "arxiv", None
    if "repo_name" in meta:
        return f"github:{meta['repo_name']}/{meta.get('path', '')}", "github", None
    if "short_book_title" in meta:
        return f"book:{meta['short_book_title']}", "book", None
    if meta.get("source") == "stdlib" and "name" in meta:
        return f"{meta['name']}#{meta.get('part', 0)}", "stdlib", str(meta["name"])
    if meta.get("source") in ("c4", "stackexchange"):
        return str(meta.get("url", "")), meta["source"], None
    if "title" in meta and "url" in meta:
        return str(meta["url"] or meta["title"]), "wikipedia", None
    if "title" in meta:
        return f"book:{meta['title']}", "book", None
    if str(row.get("source", "")).startswith("cc/"):
        return row["source"], "common_crawl", None
    return str(meta.get("url", "")), "other", None


def parse(line: bytes | bytearray, fields: Fields) -> Document | Refused:
    """The document of a row that fits into memory several times."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row, refused = _load_anew(line)
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
    """What a line of JSON holds, or why it holds nothing."""
    try:
        return orjson.loads(line), None
    except orjson.JSONDecodeError:
        return _load_anew(line)


def _load_anew(line: bytes | bytearray) -> tuple[Any, Refused | None]:
    """As json reads a line that orjson refuses."""
    try:
        return json.loads(line), None
    except UnicodeDecodeError:
        return None, Refused.of(line, "not UTF-8")
    except (ValueError, RecursionError):
        return None, Refused.of(line, "malformed JSON")


def named(row: dict[str, Any], fields: Fields, *, text: str = "", long_text: LongText | None = None) -> Document:
    """A row's document, named by its id or else by a hash of its text."""
    name, subset, group = identity(row)
    if fields.id is not None:
        found = value_at(row, fields.id)
        name, group = "" if found is None else str(found), None
    if not name:
        digest = hashlib.sha256()
        for piece in [text] if long_text is None else long_text.pieces():
            digest.update(piece.encode())
        name = digest.hexdigest()
    return Document(name, subset, text, group or name, long_text)


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
    """(number from 1, document or why there is none) of every row from row ``first`` on that is not blank.

    Args:
        path: a local file or an fsspec URL.
        lines: the file's lines, for who wants to see how far they were read.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is empty, or ends in the middle of a row or of its compressed stream.
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
    """(number from 1, line) of every line that is not blank from ``first`` on; raises what `read_rows` does."""
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
    if not (line.ended if isinstance(line, TooLong) else line.endswith(b"\n") or _is_json(line)):
        raise ValueError(f"{path} is cut off in row {number}; fetch the file again")
    if not number:
        raise ValueError(f"{path} holds no rows; fetch the file again")


def read_documents(paths: Iterable[Path], *, rejected: Counter[str]) -> Iterator[Document]:
    """Yield every usable row of the files in order; count each other row by reason in ``rejected``.

    Raises what `read_rows` does.
    """
    for path in paths:
        for _, found in read_rows(path):
            if isinstance(found, Document):
                yield found
            else:
                rejected[found.reason] += 1


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(line: bytes | bytearray) -> bool:
    if len(line) >= LONG_ROW:
        # Parsing would take several times its size; a row that is cut off does not end in a brace.
        return line.rstrip().endswith(b"}")
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
