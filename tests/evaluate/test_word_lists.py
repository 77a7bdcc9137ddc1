"""Made-up words, none twice, and counts that follow the distributions that they are said to follow."""

from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import zeta

from ropewalk.evaluate.word_lists import common_counts, draw_codes, draw_words, shuffled, zeta_counts

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.integers(1, 2000), st.integers(1, 2000))
def test_words_are_of_syllables_none_twice_and_fewer_are_the_first_of_more(seed: int, count: int, fewer: int) -> None:
    words = draw_words(np.random.default_rng(seed), count)
    assert len(set(words)) == len(words) == count
    for word in words:
        assert len(word) == 6
        assert set(word[::2]).isdisjoint("aeiou")
        assert set(word[1::2]) <= set("aeiou")
    assert draw_words(np.random.default_rng(seed), min(fewer, count)) == words[:fewer]


@given(SEEDS, st.integers(1, 60))
def test_codes_are_drawn_of_the_alphabet_none_twice(seed: int, count: int) -> None:
    codes = draw_codes(np.random.default_rng(seed), count, alphabet="abcd", letters=3)
    assert len(set(codes)) == len(codes) == count
    assert all(len(code) == 3 and set(code) <= set("abcd") for code in codes)
    assert draw_codes(np.random.default_rng(seed), 60, alphabet="abcd", letters=3)[:count] == codes
    first = draw_codes(np.random.default_rng(seed), 1, alphabet=ascii_lowercase, letters=6)
    assert first != draw_codes(np.random.default_rng(seed + 1), 1, alphabet=ascii_lowercase, letters=6)


def test_a_shuffled_list_holds_every_word_as_often_as_was_said() -> None:
    counts = {"ba": 30, "de": 3, "go": 0, "ku": 1}
    lists = [shuffled(np.random.default_rng(seed), counts) for seed in (0, 1)]
    assert lists[0] != lists[1]
    for words in lists:
        assert {word: words.count(word) for word in counts} == counts
        assert len(words) == 34


@given(st.integers(1, 30_000))
@example(11)
@example(39)
@example(40)
@example(199)
@example(399)
@example(599)
def test_common_words_are_ten_times_as_frequent_where_the_list_has_room(words: int) -> None:
    common, other = common_counts(words)
    assert len({*common}) == len({*other}) == 1
    assert len(other) >= 7
    assert common[0] >= 2 * other[0]
    size = sum(common) + sum(other)
    assert words - other[0] < size <= max(words, 13)
    if words >= 40:
        assert common[0] == 10 * other[0]
        assert 2 * sum(common) <= words
    if words >= 200:
        assert len(common) == 10


def test_long_lists_have_the_counts_of_ruler() -> None:
    assert common_counts(900) == ([30] * 10, [3] * 200)


@given(st.integers(1, 100_000))
@example(1)
@example(200)
def test_coded_words_follow_the_zeta_distribution_and_three_are_the_most_frequent(words: int) -> None:
    noise, *coded = zeta_counts(words)
    assert coded == sorted(coded, reverse=True)
    assert coded[2] > coded[3]
    assert len(coded) >= 10
    assert coded[-1] >= 1
    expected = words / zeta(2) / np.arange(1, len(coded) + 2) ** 2
    assert noise == int(expected[0])
    assert words / zeta(2) / (len(coded) + 2) ** 2 < 1, "no word that occurs is left out"
    if words >= 200:
        assert coded == pytest.approx(np.floor(expected[1:]))
