"""Parts: the documents that were read, on disk in pieces of some MiB, so that a killed run resumes.

A part is whole or absent. It is a folder of ``text.bin`` (UTF-8), ``ends.npy`` (the end of each document in bytes),
``keys.npy`` (hashes of name and text), ``documents.jsonl`` (name and subset), ``groups.jsonl``, ``overlaps.npy`` if
there are evaluation sets, ``signatures.npy`` if near-duplicates are searched for, ``rejected.jsonl``, and ``part.json``
(counts, and the row that the next part begins with). ``splits.npy`` and ``verdicts.npy`` come when all parts are read.

datatrove marks a task as complete when its whole file is done, so a killed run repeats that file and, because the
pipeline keeps no state between its blocks, all later blocks; here the unit is a part.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from ropewalk.corpus import minhash
from ropewalk.corpus.documents import Document, Refused
from ropewalk.corpus.overlap import Overlap
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.words import BLOCK_BYTES
from ropewalk.files import read_json, write_json, writing

PART_BYTES = 1 << 26
"""Bytes of text after which a part ends."""
PART_ROWS = 100_000
"""Number of rows after which a part ends."""
KEYS = np.dtype([("name", np.uint64, 2), ("text", np.uint64, 2)])
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ReadSettings:
    """What is done with every row before documents are compared with each other."""

    min_tokens: int = 0
    min_tokens_by_subset: dict[str, int] = field(default_factory=dict)
    near: bool = False
    """Whether signatures for finding near-duplicates are computed."""
    evaluation: str | None = None
    """File with the n-grams of the evaluation sets (`ropewalk.corpus.overlap`)."""
    evaluation_words: int = 13
    evaluation_overlap: int = 1

    def min_bytes(self, subset: str) -> int:
        """Number of bytes below which a document has too few tokens, as no token is shorter than a byte."""
        return self.min_tokens_by_subset.get(subset, self.min_tokens)


@dataclass(frozen=True)
class ReadTask:
    """One shard to be read by one worker."""

    shard: Shard
    number: int
    """Number of the shard in its source, by which parts are ordered."""
    folder: str
    """Folder of all parts."""
    settings: ReadSettings

    def part(self, number: int) -> Path:
        return Path(self.folder) / f"{self.number:06}-{number:06}"


def key_of(data: bytes) -> bytes:
    """128-bit hash by which names or texts are compared."""
    return hashlib.sha256(data).digest()[:16]


def read_shard(task: ReadTask, report: Report) -> None:
    """Write the parts of a shard, resuming where an earlier call stopped, and report the counts of each part.

    Raises:
        FileNotFoundError, ValueError: as in `ropewalk.corpus.documents.read_rows`.
    """
    number, first, before = 0, 1, 0
    while (mark := task.part(number) / "part.json").is_file():
        about = read_json(mark)
        report(about)
        if about["last"]:
            return
        number, first, before = number + 1, about["next_row"], about["read_so_far"]
    lines = task.shard.lines()
    rows = task.shard.rows(first=first, lines=lines)
    last = False
    while not last:
        with writing(task.part(number)) as aside:
            aside.mkdir()
            part = _Part(aside, task.settings, task.shard.path)
            last = True
            for row_number, row in rows:
                part.take(row_number, row)
                if part.bytes >= PART_BYTES or part.rows >= PART_ROWS:
                    last, first = False, row_number + 1
                    break
            about = part.close(
                shard=task.shard.path,
                read=max(0, lines.read - before),
                read_so_far=lines.read,
                next_row=first,
                last=last,
            )
        before = max(before, lines.read)
        number += 1
        report(about)


class _Part:
    """A part that is being written. Documents wait until there are enough of them to be hashed together."""

    def __init__(self, folder: Path, settings: ReadSettings, source: str) -> None:
        self.folder, self.settings, self.source = folder, settings, source
        self.rows = self.bytes = self.documents = 0
        self.rejected: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._overlap = Overlap.load(settings.evaluation, settings.evaluation_words) if settings.evaluation else None
        self._text: BinaryIO = (folder / "text.bin").open("wb")
        self._index: BinaryIO = (folder / "documents.jsonl").open("wb")
        self._refused: BinaryIO = (folder / "rejected.jsonl").open("wb")
        self._groups = (folder / "groups.jsonl").open("w", encoding="ascii")
        self._waiting: list[tuple[Document, bytes]] = []
        self._waiting_bytes = 0
        self._ends: list[int] = []
        self._overlaps: list[bool] = []
        self._keys: list[bytes] = []
        self._signatures: list[minhash.Signatures] = []

    def take(self, number: int, row: Document | Refused) -> None:
        """Add a document, or count the row if it was refused."""
        self.rows += 1
        if isinstance(row, Refused):
            (self.rejected if row.damaged else self.dropped)[row.reason] += 1
            if row.damaged:
                about = {"file": self.source, "row": number, "reason": row.reason, "bytes": row.size}
                self._refused.write(orjson.dumps({**about, "start": row.start}) + b"\n")
        elif row.long_text is not None:
            self._flush()
            self._take_long(row)
        else:
            data = row.text.encode()
            if len(data) < self.settings.min_bytes(row.subset):
                self.dropped["too short"] += 1
            elif len(data) >= BLOCK_BYTES // 2:
                self._flush()
                self._take_long(row)
            else:
                if self._waiting_bytes + len(data) + 1 > BLOCK_BYTES:
                    self._flush()
                self._waiting.append((row, data))
                self._waiting_bytes += len(data) + 1
                self.bytes += len(data)

    def _take_long(self, document: Document) -> None:
        start, digest = self._text.tell(), hashlib.sha256()
        for piece in document.pieces():
            data = piece.encode()
            digest.update(data)
            self._text.write(data)
        end = self._text.tell()
        if end - start < self.settings.min_bytes(document.subset):
            self._text.seek(start)
            self._text.truncate()
            self.dropped["too short"] += 1
            return
        if self._overlap is not None:
            count = self._overlap.count_long(piece.encode() for piece in document.pieces())
            self._overlaps.append(count >= self.settings.evaluation_overlap)
        if self.settings.near:
            pieces = (piece.encode() for piece in document.pieces())
            self._signatures.append(minhash.long_signature(pieces)[None])
        self._add(document, end, digest.digest()[:16])
        self.bytes += end - start

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        texts = [data for _, data in waiting]
        if self._overlap is not None:
            self._overlaps.extend(self._overlap.count(texts) >= self.settings.evaluation_overlap)
        if self.settings.near and waiting:
            self._signatures.append(minhash.signatures(texts))
        end = self._text.tell()
        for document, data in waiting:
            end += len(data)
            self._add(document, end, key_of(data))
        self._text.write(b"".join(texts))

    def _add(self, document: Document, end: int, text_key: bytes) -> None:
        self._ends.append(end)
        name = document.name.encode(errors="surrogatepass")
        self._keys.append(key_of(name) + text_key)
        # orjson writes no lone surrogates, which a name or subset may contain.
        shown = name.decode(errors="backslashreplace"), document.subset.encode(errors="backslashreplace").decode()
        self._index.write(orjson.dumps(shown) + b"\n")
        self._groups.write(json.dumps(document.group) + "\n")
        self.documents += 1

    def close(self, **facts: Any) -> dict[str, Any]:
        """Finish the part and return its counts and ``facts``, which are written to part.json."""
        self._flush()
        for out in (self._text, self._index, self._groups, self._refused):
            out.close()
        np.save(self.folder / "ends.npy", np.asarray(self._ends, np.int64))
        np.save(self.folder / "keys.npy", np.frombuffer(b"".join(self._keys), KEYS))
        if self._overlap is not None:
            np.save(self.folder / "overlaps.npy", np.asarray(self._overlaps, bool))
        if self.settings.near:
            empty = np.zeros((0, minhash.BINS), np.uint16)
            np.save(self.folder / "signatures.npy", np.concatenate([empty, *self._signatures]))
        about = {
            "documents": self.documents,
            "text_bytes": self.bytes,
            "rejected": dict(self.rejected),
            "dropped": dict(self.dropped),
            **facts,
        }
        write_json(self.folder / "part.json", about)
        return about


@dataclass(frozen=True)
class Part:
    """A part that was written completely; ``len()`` is its number of documents."""

    path: Path
    about: dict[str, Any]
    """Content of part.json."""

    def __len__(self) -> int:
        return int(self.about["documents"])

    def array(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """The array in ``name``.npy, memory-mapped on request; an empty one cannot be mapped."""
        return np.asarray(np.load(self.path / f"{name}.npy", mmap_mode="r" if mapped and len(self) else None))

    def documents(self) -> list[tuple[str, str]]:
        """(name, subset) of every document."""
        with (self.path / "documents.jsonl").open("rb") as lines:
            return [tuple(orjson.loads(line)) for line in lines]

    def groups(self) -> list[str]:
        """Group of every document."""
        with (self.path / "groups.jsonl").open(encoding="ascii") as lines:
            return [json.loads(line) for line in lines]

    def keep(self, name: str, values: NDArray[Any]) -> None:
        """Write an array with a value for every document to ``name``.npy, unless that is there."""
        path = self.path / f"{name}.npy"
        if not path.is_file():
            with writing(path) as aside, aside.open("wb") as out:
                np.save(out, values)


def whole_parts(folder: Path) -> list[Part]:
    """All complete parts in a folder, in the order of the corpus."""
    marks = sorted(folder.glob("[0-9]*/part.json"))
    return [Part(mark.parent, read_json(mark)) for mark in marks]
