"""Token store: the documents of one split as one memory-mapped array with an index of documents.

A store is a folder of ``tokens.bin`` (16 or 32 bits a token), ``ends.npy`` (each document's end in
tokens) and ``store.json`` (names, subsets, hash, tokenizer); any segment is one read.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ropewalk.corpus.documents import Document
from ropewalk.files import read_json, write_json, writing


class TokenStore:
    """Read access to a store; ``len()`` is the number of documents.

    Raises:
        FileNotFoundError: no whole store lies at ``path``.
        ValueError: its files do not belong together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise FileNotFoundError(f"no token store at {self.path}; run the stage prepare first")
        about = read_json(self.path / "store.json")
        self.names: list[str] = about["names"]
        self.subsets: list[str] = about["subsets"]
        self.bos: int = about["bos"]
        self.eos: int = about["eos"]
        self.vocab_size: int = about["vocab_size"]
        self.hash: str = about["hash"]
        self.ends = np.load(self.path / "ends.npy")
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        self.lengths = self.ends - self.starts
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.tokens = (
            np.memmap(self.path / "tokens.bin", about["dtype"], mode="r") if total else np.zeros(0, about["dtype"])
        )
        if len(self.tokens) != total or len(self.ends) != len(self.names):
            raise ValueError(f"the token store at {self.path} is damaged; remove it and run the stage prepare again")

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        # Another process maps the files itself.
        return TokenStore, (self.path,)

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.ends[index]]

    def long_documents(self, tokens: int) -> np.ndarray:
        """Indices, in store order, of the documents of at least ``tokens`` tokens."""
        return np.flatnonzero(self.lengths >= tokens)

    def first_tokens(self, tokens: int, *, documents: int | None = None, at_least: int | None = None) -> np.ndarray:
        """BOS and the first ``tokens - 1`` tokens of each long enough document: (documents, tokens), int64.

        ``at_least`` keeps only documents of that many tokens, so that several lengths share their documents.

        Raises:
            ValueError: fewer long documents than asked for; says how many there are and the longest.
        """
        enough = self.long_documents(max(tokens - 1, at_least or 0))
        wanted = documents if documents is not None else len(enough)
        if len(enough) < max(wanted, 1):
            longest = int(self.lengths.max()) if len(self) else 0
            raise ValueError(
                f"{self.path} holds {len(enough)} documents of at least {max(tokens - 1, at_least or 0)} tokens, "
                f"{max(wanted, 1)} are needed (the longest has {longest}); lower the length or add longer documents"
            )
        rows = np.empty((wanted, tokens), np.int64)
        rows[:, 0] = self.bos
        for row, index in enumerate(enough[:wanted]):
            rows[row, 1:] = self.document(int(index))[: tokens - 1]
        return rows


def write_store(
    path: str | Path,
    documents: Iterable[tuple[Document, list[int]]],
    *,
    bos: int,
    eos: int,
    vocab_size: int,
) -> None:
    """Write tokenised documents to a new store at ``path``, whole or not at all."""
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    digest = hashlib.sha256()
    names, subsets, ends, total = [], [], [], 0
    with writing(path) as aside:
        aside.mkdir()
        with (aside / "tokens.bin").open("wb") as out:
            for document, ids in documents:
                data = np.asarray(ids, dtype).tobytes()
                digest.update(data)
                out.write(data)
                total += len(ids)
                names.append(document.name)
                subsets.append(document.subset)
                ends.append(total)
        np.save(aside / "ends.npy", np.asarray(ends, np.int64))
        about = {"bos": bos, "eos": eos, "vocab_size": vocab_size, "dtype": dtype.name, "hash": digest.hexdigest()}
        index = {"documents": len(names), "tokens": total, "names": names, "subsets": subsets}
        write_json(aside / "store.json", {**about, **index})
