"""Parts: what was read, in pieces of some MiB on disk, each whole or absent, so that a killed run goes on.

A part is a folder of ``text.bin`` (UTF-8), ``ends.npy`` (each document's end in bytes), ``keys.npy`` (hashes of
name and text), ``splits.npy``, ``documents.jsonl`` (name and subset), ``signatures.npy`` where near-duplicates
are looked for, ``rejected.jsonl``, and ``part.json`` (counts, and the row that the next part begins with).

datatrove marks a task as complete when its whole file is done, so a killed run reads that file again from its
start and, as the pipeline has no state between its blocks, all later blocks too; here the unit is a part.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
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
from ropewalk.corpus.split import SPLITS, split_of
from ropewalk.corpus.words import BLOCK_BYTES
from ropewalk.files import read_json, write_json, writing

PART_BYTES = 1 << 26
"""Text after which a part ends."""
PART_ROWS = 100_000
KEYS = np.dtype([("name", np.uint64, 2), ("text", np.uint64, 2)])
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Reading:
    """What happens to every row before documents are compared with each other."""

    search_share: float
    test_share: float
    salt: str
    least_tokens: int = 0
    least_tokens_by_subset: dict[str, int] = field(default_factory=dict)
    near: bool = False
    """Whether signatures for near-duplicates are made."""
    evaluation: str | None = None
    """File with the n-grams of evaluation sets (`ropewalk.corpus.overlap`)."""
    evaluation_words: int = 13
    evaluation_overlap: int = 1

    def split(self, group: str) -> int:
        own = split_of(group, search_share=self.search_share, test_share=self.test_share, salt=self.salt)
        return SPLITS.index(own)

    def least(self, subset: str) -> int:
        return self.least_tokens_by_subset.get(subset, self.least_tokens)


@dataclass(frozen=True)
class ReadTask:
    shard: Shard
    number: int
    """Of the shard in its source; parts are ordered by it."""
    folder: str
    reading: Reading

    def part(self, number: int) -> Path:
        return Path(self.folder) / f"{self.number:06}-{number:06}"


def key_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def read_shard(task: ReadTask, report: Report) -> None:
    """Write a shard's parts, from where an earlier call stopped; report each one's counts.

    Raises what `ropewalk.corpus.documents.read_rows` does.
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
            part = _Part(aside, task.reading, task.shard.path)
            last = True
            for row, found in rows:
                part.take(row, found)
                if part.bytes >= PART_BYTES or part.rows >= PART_ROWS:
                    last, first = False, row + 1
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


def write_parts(documents: Iterable[Document], folder: Path, reading: Reading, report: Report) -> None:
    """Documents that are no shard's, as parts that no later call goes on from."""
    rows = iter(documents)
    number, more = 0, True
    while more:
        with writing(folder / f"{0:06}-{number:06}") as aside:
            aside.mkdir(parents=True)
            part = _Part(aside, reading, "")
            more = False
            for document in rows:
                part.take(0, document)
                if part.bytes >= PART_BYTES or part.rows >= PART_ROWS:
                    more = True
                    break
            about = part.close(shard="", read=part.bytes)
        number += 1
        report(about)


class _Part:
    """One part while it is written; documents wait until there are enough to be hashed together."""

    def __init__(self, folder: Path, reading: Reading, source: str) -> None:
        self.folder, self.reading, self.source = folder, reading, source
        self.rows = self.bytes = self.documents = 0
        self.rejected: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._overlap = Overlap.load(reading.evaluation, reading.evaluation_words) if reading.evaluation else None
        self._text: BinaryIO = (folder / "text.bin").open("wb")
        self._index: BinaryIO = (folder / "documents.jsonl").open("wb")
        self._refused: BinaryIO = (folder / "rejected.jsonl").open("wb")
        self._waiting: list[tuple[Document, bytes, int]] = []
        self._waiting_bytes = 0
        self._ends: list[int] = []
        self._splits: list[int] = []
        self._keys: list[bytes] = []
        self._signatures: list[minhash.Signatures] = []

    def take(self, row: int, found: Document | Refused) -> None:
        self.rows += 1
        if isinstance(found, Refused):
            (self.rejected if found.damaged else self.dropped)[found.reason] += 1
            if found.damaged:
                about = {"file": self.source, "row": row, "reason": found.reason, "bytes": found.size}
                self._refused.write(orjson.dumps({**about, "start": found.start}) + b"\n")
        elif found.long_text is not None:
            self._flush()
            self._take_long(found)
        else:
            data = found.text.encode()
            if len(data) < self.reading.least(found.subset):
                self.dropped["too short"] += 1
            elif len(data) >= BLOCK_BYTES // 2:
                self._flush()
                self._take_long(found)
            else:
                if self._waiting_bytes + len(data) + 1 > BLOCK_BYTES:
                    self._flush()
                self._waiting.append((found, data, self.reading.split(found.group)))
                self._waiting_bytes += len(data) + 1
                self.bytes += len(data)

    def _take_long(self, document: Document) -> None:
        start, digest = self._text.tell(), hashlib.sha256()
        for piece in document.pieces():
            data = piece.encode()
            digest.update(data)
            self._text.write(data)
        end, split = self._text.tell(), self.reading.split(document.group)
        pieces = (piece.encode() for piece in document.pieces())
        if end - start < self.reading.least(document.subset):
            reason = "too short"
        elif (
            self._overlap
            and SPLITS[split] == "train"
            and (self._overlap.count_long(pieces) >= self.reading.evaluation_overlap)
        ):
            reason = "overlaps an evaluation set"
        else:
            reason = ""
        if reason:
            self._text.seek(start)
            self._text.truncate()
            self.dropped[reason] += 1
            return
        if self.reading.near:
            pieces = (piece.encode() for piece in document.pieces())
            self._signatures.append(minhash.long_signature(pieces)[None])
        self._add(document, split, end, digest.digest()[:16])
        self.bytes += end - start

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._overlap is not None:
            counts = self._overlap.count([data for _, data, _ in waiting])
            kept = [
                item
                for item, count in zip(waiting, counts, strict=True)
                if count < self.reading.evaluation_overlap or SPLITS[item[2]] != "train"
            ]
            if len(waiting) > len(kept):
                self.dropped["overlaps an evaluation set"] += len(waiting) - len(kept)
            waiting = kept
        if self.reading.near and waiting:
            self._signatures.append(minhash.signatures([data for _, data, _ in waiting]))
        end = self._text.tell()
        for document, data, split in waiting:
            end += len(data)
            self._add(document, split, end, key_of(data))
        self._text.write(b"".join(data for _, data, _ in waiting))

    def _add(self, document: Document, split: int, end: int, text_key: bytes) -> None:
        self._ends.append(end)
        self._splits.append(split)
        name = document.name.encode(errors="surrogatepass")
        self._keys.append(key_of(name) + text_key)
        # As text that JSON can hold, whatever the name.
        self._index.write(orjson.dumps([name.decode(errors="backslashreplace"), document.subset]) + b"\n")
        self.documents += 1

    def close(self, **more: Any) -> dict[str, Any]:
        """Finish the part and return its counts."""
        self._flush()
        for out in (self._text, self._index, self._refused):
            out.close()
        np.save(self.folder / "ends.npy", np.asarray(self._ends, np.int64))
        np.save(self.folder / "splits.npy", np.asarray(self._splits, np.uint8))
        np.save(self.folder / "keys.npy", np.frombuffer(b"".join(self._keys), KEYS))
        if self.reading.near:
            empty = np.zeros((0, minhash.BINS), np.uint16)
            np.save(self.folder / "signatures.npy", np.concatenate([empty, *self._signatures]))
        about = {
            "documents": self.documents,
            "text_bytes": self.bytes,
            "rejected": dict(self.rejected),
            "dropped": dict(self.dropped),
            **more,
        }
        write_json(self.folder / "part.json", about)
        return about


@dataclass(frozen=True)
class Part:
    """A part that is whole."""

    path: Path
    about: dict[str, Any]

    def __len__(self) -> int:
        return int(self.about["documents"])

    def array(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        return np.asarray(np.load(self.path / f"{name}.npy", mmap_mode="r" if mapped and len(self) else None))

    def documents(self) -> list[tuple[str, str]]:
        """(name, subset) of every document."""
        with (self.path / "documents.jsonl").open("rb") as lines:
            return [tuple(orjson.loads(line)) for line in lines]


def whole_parts(folder: Path) -> list[Part]:
    """The parts of a folder in the order of the corpus."""
    marks = sorted(folder.glob("[0-9]*/part.json"))
    return [Part(mark.parent, read_json(mark)) for mark in marks]
