"""Word n-grams, MinHash and overlaps against what sets of words say."""

import re
from pathlib import Path

import numpy as np
import pytest

from ropewalk.corpus.documents import Document
from ropewalk.corpus.minhash import EMPTY, long_signature, signatures, similarity
from ropewalk.corpus.overlap import Overlap, write_evaluation
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.words import BLOCK_BYTES, blocks, ngrams


def plain_ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[place : place + n]) for place in range(len(words) - n + 1)}


@pytest.fixture(scope="module")
def novel(shared: Path) -> str:
    path = min((shared / "data" / "novels").glob("*.txt"), key=lambda file: file.stat().st_size)
    return path.read_text(encoding="utf-8").encode("ascii", "ignore").decode()


def test_distinct_ngrams_are_those_of_the_words(novel: str) -> None:
    text = novel[:200_000]
    for n in (1, 2, 5, 13):
        hashes, _ = ngrams([text.encode()], n)
        assert len(np.unique(hashes)) == len(plain_ngrams(text, n))


def test_an_ngram_does_not_depend_on_where_it_stands_or_on_its_case() -> None:
    first, _ = ngrams([b"Call me Ishmael. Some years ago"], 3)
    other, owner = ngrams([b"x", b"they said: call ME ishmael, some Years (ago)", b""], 3)
    assert set(first) <= set(other)
    assert set(owner) == {1}


def test_ngrams_never_cross_texts() -> None:
    hashes, _ = ngrams([b"a b c", b"d e f"], 3)
    assert len(hashes) == 2
    assert not len(ngrams([b"a b", b"c d"], 3)[0])
    assert not len(ngrams([b"", b"..."], 1)[0])


def test_a_long_text_has_the_ngrams_of_the_whole(novel: str) -> None:
    data = novel[:300_000].encode()
    whole = set(ngrams([data], 5)[0])
    for size in (3, 1000, 7777, 10**6):
        pieces = [data[start : start + size] for start in range(0, min(len(data), size * 400), size)]
        joined = b"".join(pieces)
        in_blocks = {value for block in blocks(pieces, 5) for value in ngrams([block], 5)[0]}
        expected = whole if joined == data else set(ngrams([joined], 5)[0])
        # Where a block ends inside a word, its beginning is taken for a word as well.
        assert expected <= in_blocks
        assert len(in_blocks - expected) <= 2 * len(pieces)
    assert all(len(block) <= BLOCK_BYTES for block in blocks([b"x" * (3 * BLOCK_BYTES)], 5))


@pytest.mark.parametrize("changed", [0, 3, 10, 30, 60])
def test_similarity_is_that_of_the_sets(novel: str, changed: int) -> None:
    words = novel.split()[1000:3000]
    other = list(words)
    for place in np.random.default_rng(changed).choice(len(words), 2 * changed, replace=False):
        other[place] = f"changed{place}"
    first, second = " ".join(words), " ".join(other)
    a, b = plain_ngrams(first, 5), plain_ngrams(second, 5)
    estimate = similarity(*(signatures([text.encode()]) for text in (first, second)))[0]
    assert estimate == pytest.approx(len(a & b) / len(a | b), abs=0.15)
    assert changed or estimate == 1


def test_unrelated_texts_are_not_similar(novel: str) -> None:
    made = signatures([novel[:50_000].encode(), novel[100_000:150_000].encode()])
    assert similarity(made[:1], made[1:])[0] < 0.1


def test_a_short_text_has_a_signature_too() -> None:
    made = signatures([b"one two three four five six", b"one two three four five six", b"two words"])
    assert (made[0] == made[1]).all()
    assert (made[0] != EMPTY).all()
    assert (made[2] == EMPTY).all()


def test_a_long_signature_is_that_of_the_whole(novel: str) -> None:
    data = novel[:400_000].encode()
    whole = signatures([data])
    assert similarity(whole, long_signature([data[:150_000], data[150_000:]])[None])[0] > 0.98


def test_an_overlap_with_an_evaluation_set_is_found(tmp_path: Path) -> None:
    held_out = "the quick brown fox jumps over the lazy dog while seven wizards vex the bold judge"
    (tmp_path / "set.jsonl").write_text('{"question": "' + held_out + '"}\n{"question": "too short"}\n')
    count = write_evaluation([Shard(str(tmp_path / "set.jsonl"), text_field="question")], tmp_path / "set.npy", words=8)
    assert count == len(held_out.split()) - 7
    overlap = Overlap.load(str(tmp_path / "set.npy"), 8)
    texts = [f"before, {held_out.title()}. after", "the quick brown fox jumps over the", "nothing of it at all " * 9]
    assert overlap.count([text.encode() for text in texts]).tolist() == [count, 0, 0]
    assert overlap.count_long([texts[0].encode()]) == count
    with pytest.raises(ValueError, match="hold no text of 99 words"):
        write_evaluation([Shard(str(tmp_path / "set.jsonl"), text_field="question")], tmp_path / "no.npy", words=99)


def test_document_pieces_are_its_text() -> None:
    assert list(Document("a", "c4", "text", "a").pieces()) == ["text"]
