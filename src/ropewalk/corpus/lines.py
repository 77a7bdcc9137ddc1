"""Lines of a JSON file in bounded memory: plain, gzip or zstd, local or at any address that fsspec opens.

A file in UTF-16 or UTF-32, which Windows' tools write, is read as UTF-8.

zstandard's readers end without an error where a stream is cut off, so frames are followed here. They are read in small
pieces because a few compressed bytes can decompress to many.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
import zstandard

BROKEN = (EOFError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile)
"""Exceptions raised while a compressed stream is read that is damaged or cut off."""
_CHUNK_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 16


@dataclass(frozen=True)
class TooLong:
    """Placeholder for a line that is too long to be held in memory."""

    size: int
    """Length in bytes."""
    ended: bool
    """Whether the line ends with a newline."""


def is_remote(path: str) -> bool:
    return "://" in path


def open_binary(path: str) -> BinaryIO:
    """Open a local file or an fsspec URL for reading bytes."""
    if not is_remote(path):
        return Path(path).open("rb")
    return cast(BinaryIO, fsspec.open(path, "rb").open())


class _Source:
    """A file whose errors are reported in one line, whatever library reads it, if it is remote."""

    def __init__(self, path: str, source: BinaryIO) -> None:
        self.path, self._source, self.read_so_far = path, source, 0

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except Exception as error:
            if not is_remote(self.path):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{self.path} cannot be read: {reason}; run the same command again to resume") from None
        self.read_so_far += len(data)
        return data


class Lines:
    """The lines of a file with their newlines; a line of more than ``largest`` bytes is replaced by `TooLong`.

    Attributes:
        read: number of bytes read so far of the file as it is stored.
    """

    def __init__(self, path: str, *, largest: int) -> None:
        self.path, self.largest, self.read = path, largest, 0

    def __iter__(self) -> Iterator[bytes | bytearray | TooLong]:
        with open_binary(self.path) as source:
            yield from _split(_as_utf8(self._chunks(_Source(self.path, source))), self.largest)

    def _chunks(self, source: _Source) -> Iterator[bytes]:
        if self.path.endswith(".zst"):
            yield from self._zstd(source)
            return
        # GzipFile calls nothing but read.
        stream = gzip.GzipFile(fileobj=cast(BinaryIO, source)) if self.path.endswith(".gz") else source
        while chunk := stream.read(_CHUNK_BYTES):
            self.read = source.read_so_far
            yield chunk

    def _zstd(self, source: _Source) -> Iterator[bytes]:
        new_frame = zstandard.ZstdDecompressor().decompressobj
        frame, in_frame = new_frame(), False
        while chunk := source.read(_ZSTD_BYTES):
            self.read += len(chunk)
            while chunk:
                in_frame = True
                if data := frame.decompress(chunk):
                    yield data
                chunk = frame.unused_data
                if frame.eof:
                    frame, in_frame = new_frame(), False
        if in_frame:
            raise EOFError("the compressed stream ends early")


def _as_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text in UTF-8, without a byte order mark; JSON shows its encoding in its first four bytes."""
    head = b""
    while len(head) < 4 and (chunk := next(chunks, b"")):
        head += chunk
    encoding = json.detect_encoding(head)
    if encoding.startswith("utf-8"):
        yield from chain([head.removeprefix(codecs.BOM_UTF8)], chunks)
        return
    # Half a surrogate pair is passed on to the parser, which refuses its row alone.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for chunk in chain([head], chunks):
        yield decoder.decode(chunk).encode(errors="surrogatepass")


def _split(chunks: Iterator[bytes], largest: int) -> Iterator[bytes | bytearray | TooLong]:
    pending, over = bytearray(), 0
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if over:
                yield TooLong(over + len(line) + 1, ended=True)
                over = 0
            elif pending:
                pending += line
                pending += b"\n"
                # A long line is not converted to bytes: a copy would double the memory.
                yield pending if len(pending) > _CHUNK_BYTES else bytes(pending)
                pending = bytearray()
            else:
                yield line + b"\n"
        if over:
            over += len(rest)
        else:
            pending += rest
            if len(pending) > largest:
                pending, over = bytearray(), len(pending)
    if over:
        yield TooLong(over, ended=False)
    elif pending:
        yield pending
