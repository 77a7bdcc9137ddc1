"""Rows that are too long to be parsed whole: the text is located in the bytes of the row and read in pieces.

A Python string takes up to four bytes per character, in addition to the row and to orjson's result, so that parsing a
row of 200 MB could take a gigabyte. Here it takes the size of the row and a few MiB.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

PIECE_BYTES = 1 << 20
_LONGEST_ESCAPE = 12
"""Number of bytes of an escaped surrogate pair, \\ud83d\\ude00."""
_SPACE = b" \t\r\n"
_BRACKETS = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^,}\s]+")


@dataclass(frozen=True)
class LongText:
    """A JSON string inside a row, still escaped."""

    row: bytes | bytearray
    start: int
    """Index of the first byte of the string, after the quote."""
    end: int
    """Index of the closing quote."""

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of about a MiB.

        Raises:
            UnicodeDecodeError: the text is not UTF-8.
            ValueError: the text is not a valid JSON string, or holds half a surrogate pair.
        """
        start = self.start
        while start < self.end:
            piece, start = self._piece(start)
            yield piece

    def _piece(self, start: int) -> tuple[str, int]:
        """The piece that begins at ``start``, and the index of the next one, which is never inside a character."""
        stop = min(start + PIECE_BYTES, self.end)
        for end in range(stop, min(stop + _LONGEST_ESCAPE, self.end) + 1):
            try:
                piece = orjson.loads(b'"' + self.row[start:end] + b'"')
            except orjson.JSONDecodeError:
                continue
            if isinstance(piece, str):
                return piece, end
        raise ValueError(_fault(bytes(self.row[start : min(stop + _LONGEST_ESCAPE, self.end)])))


def _fault(raw: bytes) -> str:
    """The reason why these bytes, which may end inside a character, are no JSON string."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        # The last three bytes may be the beginning of a character.
        if error.start < len(raw) - 3:
            return "not UTF-8"
    try:
        json.loads(b'"' + raw + b'"')
    except ValueError:
        return "malformed JSON"
    return "text with lone surrogates"


def read_long_row(row: bytes | bytearray, field: str) -> tuple[bytes, LongText | None, str | None]:
    """Take the text out of a row.

    Args:
        field: key of the text in the outermost object.

    Returns:
        The row with an empty text, the text, and the reason if there is no text.
    """
    try:
        span = _find(row, field.encode())
    except (ValueError, IndexError):
        return b"", None, "malformed JSON"
    if span is None:
        return b"", None, "no text"
    text = LongText(row, *span)
    try:
        # All pieces are read, because the last one may be faulty.
        pieces_with_text = sum(not piece.isspace() for piece in text.pieces())
    except ValueError as error:
        return b"", None, str(error)
    if not pieces_with_text:
        return b"", None, "empty text"
    return bytes(row[: text.start]) + bytes(row[text.end :]), text, None


def _find(row: bytes | bytearray, field: bytes) -> tuple[int, int] | None:
    """Start and end of the string at a key of the outermost object; of equal keys the last counts, as in any parser."""
    span = None
    place = _skip(row, 0)
    if row[place : place + 1] != b"{":
        return None
    place = _skip(row, place + 1)
    while row[place : place + 1] == b'"':
        end = _string_end(row, place + 1)
        key = orjson.loads(row[place : end + 1]).encode()
        place = _skip(row, end + 1)
        if row[place : place + 1] != b":":
            raise ValueError("a key without a value")
        place = _skip(row, place + 1)
        if row[place : place + 1] == b'"':
            end = _string_end(row, place + 1)
            span = (place + 1, end) if key == field else span
            place = end + 1
        else:
            span = None if key == field else span
            place = _value_end(row, place)
        place = _skip(row, place)
        if row[place : place + 1] == b",":
            place = _skip(row, place + 1)
    if row[place : place + 1] != b"}" or row[place + 1 :].strip():
        raise ValueError("the object does not end")
    return span


def _skip(row: bytes | bytearray, place: int) -> int:
    """Index of the first byte from ``place`` on that is no white space."""
    while row[place] in _SPACE:
        place += 1
    return place


def _string_end(row: bytes | bytearray, start: int) -> int:
    """Index of the quote that closes the string whose first byte is at ``start``."""
    while True:
        quote = row.index(b'"', start)
        before = quote
        while row[before - 1] == 0x5C:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote
        start = quote + 1


def _value_end(row: bytes | bytearray, start: int) -> int:
    """Index after the value at ``start``, which is not a string."""
    if row[start : start + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(row, start)
        if scalar is None:
            raise ValueError("no value")
        return scalar.end()
    depth = 0
    while True:
        mark = _BRACKETS.search(row, start)
        if mark is None:
            raise ValueError("a bracket that is not closed")
        start = mark.end()
        if mark.group() == b'"':
            start = _string_end(row, start) + 1
        else:
            depth += 1 if mark.group() in b"{[" else -1
            if not depth:
                return start
