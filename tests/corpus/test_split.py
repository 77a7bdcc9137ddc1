"""Splits by a hash of the group's name."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.corpus.split import SPLITS, split_of

shares = st.tuples(st.floats(0, 0.5), st.floats(0, 0.5))


@pytest.mark.parametrize(
    ("group", "split"),
    [
        ("stdlib/asyncio", "train"),
        ("stdlib/logging", "test"),
        ("stdlib/http", "search"),
        ("arxiv:1607.04768", "train"),
    ],
)
def test_a_split_never_changes(group: str, split: str) -> None:
    """Values written down once: another machine, version or run must give the same."""
    assert split_of(group, search_share=0.15, test_share=0.15, salt="42") == split


@given(st.text(), st.text(), shares)
def test_every_name_has_one_split(group: str, salt: str, share: tuple[float, float]) -> None:
    first, again = (split_of(group, search_share=share[0], test_share=share[1], salt=salt) for _ in range(2))
    assert first == again
    assert first in SPLITS


@given(st.text(), shares, st.floats(0, 0.5))
def test_a_larger_test_share_keeps_what_was_test(group: str, share: tuple[float, float], more: float) -> None:
    if split_of(group, search_share=share[0], test_share=share[1], salt="") == "test":
        assert split_of(group, search_share=share[0], test_share=share[1] + more, salt="") == "test"


def test_shares_come_out() -> None:
    counts = Counter(
        split_of(f"document {number}", search_share=0.1, test_share=0.2, salt="a") for number in range(20_000)
    )
    assert counts["search"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)


def test_the_salt_decides() -> None:
    splits = [
        [split_of(f"document {number}", search_share=0.3, test_share=0.3, salt=salt) for number in range(100)]
        for salt in ("a", "b")
    ]
    assert splits[0] != splits[1]


def test_a_name_with_half_a_surrogate_pair_has_a_split() -> None:
    assert split_of("\ud83d", search_share=0.15, test_share=0.15, salt="") in SPLITS
