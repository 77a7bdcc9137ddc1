"""Lengths that are estimated from samples: no document is taken for shorter or longer than it may be."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ropewalk.corpus.lengths import longest_documents
from ropewalk.corpus.parts import Part, ReadSettings, ReadTask, read_shard, whole_parts
from ropewalk.corpus.shards import TEXT, Shard
from ropewalk.corpus.tokenise import encoder
from workspace import ROOT


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "models/walker/tokenizer.json"))


def read(folder: Path, texts: list[str]) -> list[Part]:
    for number, text in enumerate(texts):
        path = folder / f"{number:04}.txt"
        path.write_text(text)
        read_shard(ReadTask(Shard(str(path), TEXT), number, str(folder / "parts"), ReadSettings()), lambda _: None)
    return whole_parts(folder / "parts")


def test_true_lengths_lie_within_the_estimate(tmp_path: Path, shared: Path, tokenizer: Tokenizer) -> None:
    paths = sorted((shared / "data" / "novels").glob("*.txt"))[:6]
    sizes = (900, 20_000, 60_000, 90_000, 120_000, 300_000)
    texts = [path.read_text(encoding="utf-8-sig")[:size] for path, size in zip(paths, sizes, strict=True)]
    parts = read(tmp_path, texts)
    estimate = longest_documents(parts, encoder(tokenizer), long_tokens=10_000)
    true = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert estimate.places.tolist() == list(range(6))
    assert estimate.groups.tolist() == [f"{number:04}.txt" for number in range(6)]
    # Short ones are read whole.
    assert estimate.low[:2].tolist() == estimate.high[:2].tolist() == true[:2]
    assert all(low <= length <= high for low, length, high in zip(estimate.low, true, estimate.high, strict=True))
    assert (estimate.high[2:] < 1.2 * estimate.low[2:]).all()
    assert estimate.longest == pytest.approx(max(true), rel=0.05)


def test_documents_that_are_not_sampled_are_like_those_that_are(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"number {number} is a number; " * (20 + number) for number in range(100)]
    estimate = longest_documents(read(tmp_path, texts), encoder(tokenizer), long_tokens=1)
    true = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert (estimate.low < estimate.high).sum() == 36
    assert all(low <= length <= high for low, length, high in zip(estimate.low, true, estimate.high, strict=True))


def test_memory_is_bounded_by_looking_at_the_longest_only(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = np.random.default_rng(0).permutation(40)
    parts = read(tmp_path, ["word " * (5 + size) for size in sizes])
    monkeypatch.setattr("ropewalk.corpus.lengths.MOST_DOCUMENTS", 10)
    estimate = longest_documents(parts, encoder(tokenizer), long_tokens=1)
    assert estimate.places.tolist() == np.flatnonzero(sizes >= 30).tolist()
    assert estimate.total == 40


def test_documents_of_the_same_text_share_a_number(tmp_path: Path, tokenizer: Tokenizer) -> None:
    estimate = longest_documents(read(tmp_path, ["one", "two", "one", "three"]), encoder(tokenizer), long_tokens=1)
    assert len(set(estimate.texts.tolist())) == 3
    assert estimate.texts[0] == estimate.texts[2]
    assert len(longest_documents([], encoder(tokenizer), long_tokens=1)) == 0
