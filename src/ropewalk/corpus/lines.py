"""Lines of a file: plain, gzip or zstd, here or at any address that fsspec opens, in bounded memory.

zstandard's own readers end quietly where a stream is cut off, so frames are followed here, in small pieces
because a little of it can decompress to a lot.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
import zstandard

BROKEN = (EOFError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile)
"""What reading raises where a compressed stream is damaged or cut off."""
_CHUNK_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 16


@dataclass(frozen=True)
class TooLong:
    """Stands for a line that is not kept in memory."""

    size: int
    ended: bool


def is_remote(path: str) -> bool:
    return "://" in path


def open_binary(path: str) -> BinaryIO:
    """A file here or at an fsspec URL, open for reading bytes."""
    if not is_remote(path):
        return Path(path).open("rb")
    return cast(BinaryIO, fsspec.open(path, "rb").open())


class _Source:
    """A file whose faults, at an address elsewhere, are told in one line whatever library reads it."""

    def __init__(self, path: str, source: BinaryIO) -> None:
        self.path, self._source, self.read_so_far = path, source, 0

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except Exception as error:
            if not is_remote(self.path):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{self.path} cannot be read: {reason}; run the same command again to go on") from None
        self.read_so_far += len(data)
        return data


class Lines:
    """Iterates over a file's lines with their newline; a line of more than ``largest`` bytes comes as `TooLong`.

    Attributes:
        read: bytes of the file, as it is stored, that were read so far.
    """

    def __init__(self, path: str, *, largest: int) -> None:
        self.path, self.largest, self.read = path, largest, 0

    def __iter__(self) -> Iterator[bytes | bytearray | TooLong]:
        with open_binary(self.path) as source:
            yield from _split(self._chunks(_Source(self.path, source)), self.largest)

    def _chunks(self, source: _Source) -> Iterator[bytes]:
        if self.path.endswith(".zst"):
            yield from self._zstd(source)
            return
        # GzipFile asks for nothing but read.
        stream = gzip.GzipFile(fileobj=cast(BinaryIO, source)) if self.path.endswith(".gz") else source
        while chunk := stream.read(_CHUNK_BYTES):
            self.read = source.read_so_far
            yield chunk

    def _zstd(self, source: _Source) -> Iterator[bytes]:
        new_frame = zstandard.ZstdDecompressor().decompressobj
        frame, begun = new_frame(), False
        while chunk := source.read(_ZSTD_BYTES):
            self.read += len(chunk)
            while chunk:
                begun = True
                if data := frame.decompress(chunk):
                    yield data
                chunk = frame.unused_data
                if frame.eof:
                    frame, begun = new_frame(), False
        if begun:
            raise EOFError("the compressed stream ends early")


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
                # A long line is handed on as it is, for a copy would double what it takes.
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
