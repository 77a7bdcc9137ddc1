"""Token store: the documents of a split as one memory-mapped array with an index of documents.

A store is a folder of ``tokens.bin`` (16 or 32 bits per token), ``ends.npy`` (the end of each document in tokens),
``by_length.npy`` (indices of the documents, the longest first), ``documents.jsonl`` (name and subset of each),
``joined.npy`` where documents were put together (corpus.across_documents), and ``store.json`` (hash, tokenizer). Any
segment is a single read. Files are loaded when they are first used, so a store of any size opens at once. Tokens are in
one file because mapping it costs nothing and several would cut documents.
"""

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ropewalk.corpus.documents import Document
from ropewalk.files import read_json, write_json, writing


class TokenStore:
    """Read access to a store; ``len()`` is the number of documents.

    Raises:
        FileNotFoundError: there is no complete store at ``path``.
        ValueError: the files of the store do not belong together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise FileNotFoundError(f"no token store at {self.path}; run the stage prepare first")
        self._about: dict[str, Any] = read_json(self.path / "store.json")
        self.bos: int = self._about["bos"]
        self.eos: int = self._about["eos"]
        self.vocab_size: int = self._about["vocab_size"]
        self.hash: str = self._about["hash"]
        # An empty array cannot be mapped.
        documents, dtype = self._about["documents"], self._about["dtype"]
        self.ends = np.load(self.path / "ends.npy", mmap_mode="r" if documents else None)
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.tokens = np.memmap(self.path / "tokens.bin", dtype, mode="r") if total else np.zeros(0, dtype)
        if len(self.tokens) != total or len(self.ends) != documents:
            raise ValueError(f"the token store at {self.path} is damaged; remove it and run the stage prepare again")

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        # A process that receives a pickled store maps the files again.
        return TokenStore, (self.path,)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> np.ndarray:
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.asarray(self.ends - self.starts)

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _ in self._documents]

    @cached_property
    def subsets(self) -> list[str]:
        return [subset for _, subset in self._documents]

    @cached_property
    def _documents(self) -> list[tuple[str, str]]:
        with (self.path / "documents.jsonl").open("rb") as lines:
            return [tuple(orjson.loads(line)) for line in lines]

    @cached_property
    def _by_length(self) -> np.ndarray:
        path = self.path / "by_length.npy"
        if len(self) and path.is_file():
            return np.asarray(np.load(path, mmap_mode="r"))
        return longest_first(self.ends)

    @cached_property
    def joined(self) -> np.ndarray:
        """Whether each document consists of several short ones, (documents,) bool."""
        path = self.path / "joined.npy"
        return np.asarray(np.load(path)) if path.is_file() else np.zeros(len(self), bool)

    def length(self, index: int) -> int:
        """Number of tokens of a document."""
        return int(self.ends[index]) - (int(self.ends[index - 1]) if index else 0)

    def document(self, index: int) -> np.ndarray:
        """Tokens of a document, (length,), memory-mapped."""
        end = int(self.ends[index])
        return self.tokens[end - self.length(index) : end]

    def long_documents(self, tokens: int) -> np.ndarray:
        """Indices, in the order of the store, of the documents with at least ``tokens`` tokens."""
        count = bisect_right(self._by_length, -tokens, key=lambda index: -self.length(int(index)))
        return np.sort(self._by_length[:count])

    def of_subsets(self, documents: np.ndarray, subsets: Sequence[str]) -> np.ndarray:
        """The indices among ``documents`` whose document is in one of ``subsets``; all if none is named.

        Raises:
            ValueError: the store has no such subset.
        """
        if not subsets:
            return documents
        known = self.subsets
        if unknown := sorted(set(subsets) - set(known)):
            raise ValueError(f"{self.path} has no subset {', '.join(unknown)}; it has {', '.join(sorted(set(known)))}")
        wanted = set(subsets)
        return np.array([index for index in documents if known[index] in wanted], dtype=np.int64)

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """Numbers of tokens of the documents with these indices."""
        before = np.where(documents > 0, self.ends[np.maximum(documents - 1, 0)], 0)
        return np.asarray(self.ends[documents] - before)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest document."""
        return self.length(int(self._by_length[0])) if len(self) else 0

    def first_tokens(self, tokens: int, *, documents: int | None = None, at_least: int | None = None) -> np.ndarray:
        """BOS and the first ``tokens - 1`` tokens of documents that are long enough: (documents, tokens), int64.

        Args:
            documents: number of documents; all by default.
            at_least: number of tokens that a document must have, so that several lengths share their documents.

        Raises:
            ValueError: there are fewer such documents; the error says how many there are and how long the longest is.
        """
        enough = self.long_documents(max(tokens - 1, at_least or 0))
        wanted = documents if documents is not None else len(enough)
        if len(enough) < max(wanted, 1):
            raise ValueError(
                f"{self.path} holds {len(enough)} documents of at least {max(tokens - 1, at_least or 0)} tokens, "
                f"{max(wanted, 1)} are needed (the longest has {self.longest}); lower the length or add longer "
                "documents"
            )
        rows = np.empty((wanted, tokens), np.int64)
        rows[:, 0] = self.bos
        for row, index in enumerate(enough[:wanted]):
            rows[row, 1:] = self.document(int(index))[: tokens - 1]
        return rows


def longest_first(ends: np.ndarray) -> np.ndarray:
    """Indices of the documents with these ends, the longest first; documents of equal length keep their order."""
    return np.argsort(-np.diff(ends, prepend=0), kind="stable")


def token_type(vocab_size: int) -> "np.dtype[Any]":
    """The smallest type that holds all tokens of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class StoreWriter:
    """Writes the files of a store, document by document, to a folder that exists."""

    def __init__(self, folder: Path, *, bos: int, eos: int, vocab_size: int) -> None:
        self.folder, self.dtype = folder, token_type(vocab_size)
        self._about = {"bos": bos, "eos": eos, "vocab_size": vocab_size, "dtype": self.dtype.name}
        self._digest = hashlib.sha256()
        self._ends, self._joined = array("q"), bytearray()
        self.total = 0
        self.lengths_by_subset: dict[str, Counter[int]] = defaultdict(Counter)
        """Number of documents of each subset by the number of bits of their length in tokens."""
        self.tokens_by_subset: Counter[str] = Counter()
        self._tokens = (folder / "tokens.bin").open("wb")
        self._documents = (folder / "documents.jsonl").open("wb")

    def add(self, name: str, subset: str, pieces: Iterable[bytes], *, joined: bool = False) -> None:
        """Add a document, whose tokens are given as bytes of the store's type in any number of pieces.

        Args:
            joined: whether the document consists of several short ones.
        """
        size = 0
        for piece in pieces:
            self._digest.update(piece)
            self._tokens.write(piece)
            size += len(piece)
        length = size // self.dtype.itemsize
        self.total += length
        self._ends.append(self.total)
        self._joined.append(joined)
        self._documents.write(orjson.dumps([name, subset]) + b"\n")
        self.tokens_by_subset[subset] += length
        self.lengths_by_subset[subset][length.bit_length()] += 1

    def abandon(self) -> None:
        """Close the files without finishing the store."""
        self._tokens.close()
        self._documents.close()

    def close(self) -> str:
        """Finish the store and return its hash."""
        self.abandon()
        ends = np.frombuffer(self._ends, np.int64) if self._ends else np.zeros(0, np.int64)
        np.save(self.folder / "ends.npy", ends)
        np.save(self.folder / "by_length.npy", longest_first(ends))
        if any(self._joined):
            np.save(self.folder / "joined.npy", np.frombuffer(self._joined, bool))
        digest = self._digest.hexdigest()
        index = {"hash": digest, "documents": len(ends), "tokens": self.total}
        write_json(self.folder / "store.json", {**self._about, **index})
        return digest


def write_store(
    path: str | Path,
    documents: Iterable[tuple[Document, list[int]]],
    *,
    bos: int,
    eos: int,
    vocab_size: int,
) -> None:
    """Write tokenised documents to a new store at ``path``, whole or not at all."""
    with writing(path) as aside:
        aside.mkdir()
        writer = StoreWriter(aside, bos=bos, eos=eos, vocab_size=vocab_size)
        try:
            for document, ids in documents:
                writer.add(document.name, document.subset, [np.asarray(ids, writer.dtype).tobytes()])
            writer.close()
        finally:
            writer.abandon()
