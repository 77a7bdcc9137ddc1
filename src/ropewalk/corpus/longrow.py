"""Rows too long to be parsed whole: the text is found in the row's bytes and read in pieces.

A Python string takes up to four bytes a character and orjson's result comes on top of the row, so a row of
200 MB would take up to a gigabyte. Here it takes its own size and some MiB.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

PIECE_BYTES = 1 << 20
_LONGEST_ESCAPE = 12
"""Bytes of a surrogate pair, \\ud83d\\ude00."""
_SPACE = b" \t\r\n"
_BRACKETS = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^,}\s]+")


@dataclass(frozen=True)
class LongText:
    """A JSON string inside a row, still escaped."""

    row: bytes | bytearray
    start: int
    """Of its first byte, after the quote."""
    end: int
    """Of its closing quote."""

    def pieces(self) -> Iterator[str]:
        """The text in pieces of about a MiB.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
            ValueError: it is not what JSON allows in a string, or holds half a surrogate pair.
        """
        at = self.start
        while at < self.end:
            piece, at = self._piece(at)
            yield piece

    def _piece(self, at: int) -> tuple[str, int]:
        """The piece from ``at`` and where the next one begins: never inside an escape, a pair or a character."""
        stop = min(at + PIECE_BYTES, self.end)
        for end in range(stop, min(stop + _LONGEST_ESCAPE, self.end) + 1):
            try:
                piece = orjson.loads(b'"' + self.row[at:end] + b'"')
            except orjson.JSONDecodeError:
                continue
            if isinstance(piece, str):
                return piece, end
        raise ValueError(_why(bytes(self.row[at : min(stop + _LONGEST_ESCAPE, self.end)])))


def _why(raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        # What lies near the end may be a character that was cut here.
        if error.start < len(raw) - 3:
            return "not UTF-8"
    try:
        json.loads(b'"' + raw + b'"')
    except ValueError:
        return "malformed JSON"
    return "text with lone surrogates"


def read_long_row(row: bytes | bytearray, field: str) -> tuple[bytes, LongText | None, str | None]:
    """(the row with an empty text, its text, why there is none) of an object's ``field`` (no dots)."""
    try:
        found = _find(row, field.encode())
    except (ValueError, IndexError):
        return b"", None, "malformed JSON"
    if found is None:
        return b"", None, "no text"
    text = LongText(row, *found)
    try:
        # All pieces are read, for a fault may lie in the last one.
        marks = sum(not piece.isspace() for piece in text.pieces())
    except ValueError as error:
        return b"", None, str(error)
    if not marks:
        return b"", None, "empty text"
    return bytes(row[: text.start]) + bytes(row[text.end :]), text, None


def _find(row: bytes | bytearray, field: bytes) -> tuple[int, int] | None:
    """Start and end of the string under a key of the outermost object; the last one counts, as in any parser."""
    found = None
    at = _skip(row, 0)
    if row[at : at + 1] != b"{":
        return None
    at = _skip(row, at + 1)
    while row[at : at + 1] == b'"':
        end = _string_end(row, at + 1)
        key = orjson.loads(row[at : end + 1]).encode()
        at = _skip(row, end + 1)
        if row[at : at + 1] != b":":
            raise ValueError("a key without a value")
        at = _skip(row, at + 1)
        if row[at : at + 1] == b'"':
            end = _string_end(row, at + 1)
            found = (at + 1, end) if key == field else found
            at = end + 1
        else:
            found = None if key == field else found
            at = _value_end(row, at)
        at = _skip(row, at)
        if row[at : at + 1] == b",":
            at = _skip(row, at + 1)
    if row[at : at + 1] != b"}" or row[at + 1 :].strip():
        raise ValueError("the object does not end")
    return found


def _skip(row: bytes | bytearray, at: int) -> int:
    while row[at] in _SPACE:
        at += 1
    return at


def _string_end(row: bytes | bytearray, at: int) -> int:
    """Of the quote that closes the string whose first byte is at ``at``."""
    while True:
        at = row.index(b'"', at)
        before = at
        while row[before - 1] == 0x5C:
            before -= 1
        if (at - before) % 2 == 0:
            return at
        at += 1


def _value_end(row: bytes | bytearray, at: int) -> int:
    """Behind a value that is no string."""
    if row[at : at + 1] not in (b"{", b"["):
        found = _SCALAR.match(row, at)
        if found is None:
            raise ValueError("no value")
        return found.end()
    depth = 0
    while True:
        mark = _BRACKETS.search(row, at)
        if mark is None:
            raise ValueError("a bracket that is not closed")
        at = mark.end()
        if mark.group() == b'"':
            at = _string_end(row, at) + 1
        else:
            depth += 1 if mark.group() in b"{[" else -1
            if not depth:
                return at
