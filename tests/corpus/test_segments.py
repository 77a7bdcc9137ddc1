"""Training rows: BOS and EOS at the ends, one document each, the same for the same seed and step."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ropewalk.corpus.documents import Document
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.store import TokenStore, write_store
from tiny_models import byte_tokenizer

BOS, EOS = 60_001, 60_002
LENGTHS = (400, 20, 62, 61, 900)
LENGTH = 64


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """A token tells its document and place: document * 1000 + place."""
    documents = [
        (Document(f"{number}", "c4", "", f"{number}"), [number * 1000 + place for place in range(length)])
        for number, length in enumerate(LENGTHS)
    ]
    write_store(tmp_path / "store", documents, bos=BOS, eos=EOS, vocab_size=60_003)
    return TokenStore(tmp_path / "store")


def ids(rows: Segments) -> torch.Tensor:
    return torch.cat([step.ids for step in rows])


def segments(store: TokenStore, *, seed: int = 7, steps: int = 40, first_step: int = 0) -> Segments:
    return Segments(store, length=LENGTH, batch_size=4, steps=steps, seed=seed, first_step=first_step)


def test_a_step_is_rows_of_the_length_with_bos_and_eos_at_the_ends(store: TokenStore) -> None:
    for batch, answers in segments(store):
        assert not answers.any()
        assert batch.shape == (4, LENGTH)
        assert batch.dtype == torch.int64
        assert (batch[:, 0] == BOS).all()
        assert (batch[:, -1] == EOS).all()


def test_no_row_crosses_a_document(store: TokenStore) -> None:
    for batch, _ in segments(store):
        inner = batch[:, 1:-1]
        assert (inner.diff(dim=1) == 1).all()
        assert (inner[:, 0] // 1000 == inner[:, -1] // 1000).all()


def test_every_long_enough_document_is_used_and_no_other(store: TokenStore) -> None:
    rows = ids(segments(store, steps=400))
    assert set((rows[:, 1] // 1000).tolist()) == {0, 2, 4}


def test_every_start_is_as_likely(store: TokenStore) -> None:
    starts = ids(segments(store, steps=1000))[:, 1]
    share = (starts < 1000).float().mean().item()
    assert share == pytest.approx((400 - 61) / (400 - 61 + 1 + 900 - 61), abs=0.03)
    assert {0, 338} <= set(starts[starts < 1000].tolist())


def test_a_step_depends_on_seed_and_step_only(store: TokenStore) -> None:
    first, other = segments(store), segments(store, steps=100, first_step=5)
    first.step(3)
    assert torch.equal(first.step(17).ids, other.step(17).ids)
    assert not torch.equal(first.step(17).ids, first.step(18).ids)
    assert not torch.equal(first.step(17).ids, segments(store, seed=8).step(17).ids)


def test_a_resumed_run_gets_the_rows_of_one_that_never_stopped(store: TokenStore) -> None:
    whole = list(segments(store, steps=12))
    resumed = segments(store, steps=12, first_step=5)
    assert len(resumed) == 12  # counts from step 0, as Lightning's loop does
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(whole[5:], resumed, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_is_the_same_whatever_the_number_of_workers(store: TokenStore, workers: int) -> None:
    rows = segments(store, steps=7, first_step=2)
    loaded = list(DataLoader(rows, batch_size=None, num_workers=workers))
    assert len(loaded) == 5
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(rows, loaded, strict=True))


def test_rows_across_documents_have_eos_and_bos_between_them(store: TokenStore) -> None:
    rows = Segments(store, length=LENGTH, batch_size=4, steps=200, seed=1, across_documents=True)
    seen: set[int] = set()
    crossing = 0
    for row in ids(rows).tolist():
        assert (row[0], row[-1], len(row)) == (BOS, EOS, LENGTH)
        inner = row[1:-1]
        seen |= {token // 1000 for token in inner if token not in (BOS, EOS)}
        crossing += EOS in inner
        for token, following in itertools.pairwise(inner):
            if token == EOS:
                assert following == BOS
            elif token == BOS:
                assert following % 1000 == 0
            elif following == EOS:
                assert token % 1000 == LENGTHS[token // 1000] - 1
            else:
                assert following == token + 1
    assert seen == {0, 1, 2, 3, 4}
    assert crossing > 20
    with pytest.raises(ValueError, match="has 1443 tokens in all, 1498 are needed"):
        Segments(store, length=1500, batch_size=1, steps=1, seed=0, across_documents=True)
    # As long as all documents together.
    [batch] = Segments(store, length=1445, batch_size=1, steps=1, seed=0, across_documents=True)
    assert batch.ids[0, 1:401].tolist() == list(range(400))
    assert batch.ids[0, 401:404].tolist() == [EOS, BOS, 1000]


def test_documents_that_are_all_too_short_are_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match=r"no document of .* has 998 tokens \(the longest has 900\); lower the length"):
        Segments(store, length=1000, batch_size=1, steps=1, seed=0)


def test_recall_rows_come_at_their_share_with_bos_and_eos(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    token = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    document = Document("a", "c4", "", "a")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    write_store(tmp_path / "store", [(document, [token] * 5000)], bos=bos, eos=eos, vocab_size=len(tokenizer))
    rows = Segments(
        TokenStore(tmp_path / "store"),
        length=512,
        batch_size=8,
        steps=20,
        seed=0,
        tokenizer=tokenizer,
        recall_share=0.25,
    )
    batches = ids(rows)
    answers = torch.cat([step.answers for step in rows])
    assert (batches[:, 0] == bos).all()
    assert (batches[:, -1] == eos).all()
    plain = (batches[:, 1:-1] == token).all(dim=1)
    assert np.mean(~plain.numpy()) == pytest.approx(0.25, abs=0.1)
    assert torch.equal(answers.any(dim=1), ~plain)
    assert all(map(torch.equal, rows.step(11), rows.step(11)))


def test_long_documents_come_at_their_share_where_rows_go_across_documents(tmp_path: Path) -> None:
    lengths = [400, *[20] * 300]
    documents = [(Document(f"{n}", "c4", "", f"{n}"), [n * 100] * length) for n, length in enumerate(lengths)]
    write_store(tmp_path / "store", documents, bos=BOS, eos=EOS, vocab_size=60_003)
    short = TokenStore(tmp_path / "store")
    sizes = {"length": LENGTH, "batch_size": 4, "steps": 200, "seed": 2, "across_documents": True}
    rows = Segments(short, **sizes, long_document_share=0.6)
    single = (ids(rows)[:, 1:-1] == 0).all(dim=1).float().mean().item()
    assert single == pytest.approx(0.62, abs=0.05)
    assert (ids(Segments(short, **sizes))[:, 1:-1] == 0).all(dim=1).float().mean().item() < 0.15
    resumed = Segments(short, **{**sizes, "steps": 12}, long_document_share=0.6, first_step=5)
    assert all(torch.equal(batch.ids, rows.step(5 + place).ids) for place, batch in enumerate(resumed))
    with pytest.raises(ValueError, match=r"no single document of .* has 498 tokens"):
        Segments(short, **{**sizes, "length": 500}, long_document_share=0.6)
