"""Token stores: what is written is read back, whole or not at all."""

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import TokenStore, write_store

LENGTHS = (5, 0, 300, 17, 120)


def documents(lengths: tuple[int, ...] = LENGTHS, *, step: int = 1) -> Iterator[tuple[Document, list[int]]]:
    for number, length in enumerate(lengths):
        name = f"document {number}"
        ids = [(number * 1000 + place * step) % 60_000 for place in range(length)]
        yield Document(name=name, subset="c4" if number % 2 else "wikipedia", text="", group=name), ids


def write(path: Path, vocab_size: int = 60_000) -> TokenStore:
    write_store(path, documents(), bos=1, eos=2, vocab_size=vocab_size)
    return TokenStore(path)


def test_documents_come_back(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    assert len(store) == len(LENGTHS)
    assert store.lengths.tolist() == list(LENGTHS)
    for index, (document, ids) in enumerate(documents()):
        assert store.names[index] == document.name
        assert store.subsets[index] == document.subset
        assert store.document(index).tolist() == ids
    assert (store.bos, store.eos, store.vocab_size) == (1, 2, 60_000)


@pytest.mark.parametrize(("vocab_size", "bits"), [(1024, 16), (2**16, 16), (2**16 + 1, 32), (200_000, 32)])
def test_tokens_take_16_bits_where_they_fit(tmp_path: Path, vocab_size: int, bits: int) -> None:
    write_store(tmp_path / "store", [(next(documents())[0], [0, vocab_size - 1])], bos=0, eos=0, vocab_size=vocab_size)
    store = TokenStore(tmp_path / "store")
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 2 * bits // 8
    assert store.document(0).tolist() == [0, vocab_size - 1]


def test_a_store_is_mapped_not_read(tmp_path: Path) -> None:
    assert isinstance(write(tmp_path / "store").tokens, np.memmap)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_a_store_without_tokens_can_be_read(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    write_store(tmp_path / "store", documents(lengths), bos=1, eos=2, vocab_size=100)
    store = TokenStore(tmp_path / "store")
    assert len(store) == len(lengths)
    with pytest.raises(ValueError, match=r"holds 0 documents of at least 9 tokens, 1 are needed \(the longest has 0\)"):
        store.first_tokens(10)


def test_long_documents_are_found_in_order(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    assert store.long_documents(17).tolist() == [2, 3, 4]
    assert store.long_documents(301).tolist() == []


def test_first_tokens_are_bos_and_the_beginning(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    rows = store.first_tokens(18)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[1, *store.document(index)[:17].tolist()] for index in (2, 3, 4)]
    assert store.first_tokens(18, documents=2).tolist() == rows[:2].tolist()
    assert store.first_tokens(18, at_least=120).tolist() == rows[[0, 2]].tolist()


def test_too_few_long_documents_are_refused_with_what_there_is(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    message = r"holds 1 documents of at least 200 tokens, 2 are needed \(the longest has 300\)"
    with pytest.raises(ValueError, match=message):
        store.first_tokens(201, documents=2)


def test_the_hash_is_of_the_tokens(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    write_store(tmp_path / "c", documents(step=2), bos=1, eos=2, vocab_size=60_000)
    assert first.hash == again.hash != TokenStore(tmp_path / "c").hash


def test_a_missing_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage prepare first"):
        TokenStore(tmp_path / "absent")


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "store")
    tokens = tmp_path / "store" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore(tmp_path / "store")


def test_a_failed_write_leaves_the_old_store(tmp_path: Path) -> None:
    before = write(tmp_path / "store").hash

    def broken() -> Iterator[tuple[Document, list[int]]]:
        yield from documents(step=3)
        raise ValueError("a shard is cut off")

    with pytest.raises(ValueError, match="cut off"):
        write_store(tmp_path / "store", broken(), bos=1, eos=2, vocab_size=60_000)
    assert TokenStore(tmp_path / "store").hash == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def full() -> Iterator[tuple[Document, list[int]]]:
        yield from documents()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="no space left on the disk"):
        write_store(tmp_path / "store", full(), bos=1, eos=2, vocab_size=60_000)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import write_store

def documents():
    yield Document("a", "c4", "", "a"), list(range(1000))
    os.kill(os.getpid(), signal.SIGKILL)

write_store(sys.argv[1], documents(), bos=1, eos=2, vocab_size=60_000)
"""


def test_a_killed_write_leaves_nothing_that_passes_for_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        TokenStore(path)
    assert len(write(path)) == len(LENGTHS)
