"""The pre-tokenizer of llama.cpp that splits as a tokenizer does, for vocabularies that nobody published."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from ropewalk.models.pretokenizers import (
    PRE_TOKENIZERS,
    PreTokenizer,
    by_name,
    matching,
    matching_short_numbers,
    number_tokens,
)
from tiny_tokenizers import LLAMA3_REGEX, QWEN2_REGEX, SAMPLES, byte_level, single_digits, split_by
from workspace import ROOT

PUBLISHED = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": single_digits,
    "llama-bpe": lambda: split_by(LLAMA3_REGEX),
    "qwen2": lambda: split_by(QWEN2_REGEX),
}


@pytest.fixture(scope="module")
def walker() -> Tokenizer:
    return AutoTokenizer.from_pretrained(ROOT / "models" / "walker").backend_tokenizer


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_splitting_of_published_models_is_known_by_its_name(name: str) -> None:
    assert matching(byte_level(PUBLISHED[name]()).backend_tokenizer).name == name


@pytest.mark.parametrize("pre", PRE_TOKENIZERS, ids=lambda pre: pre.name)
def test_each_is_told_from_all_others(pre: PreTokenizer) -> None:
    matched = matching(byte_level(pre.build()).backend_tokenizer)
    # These two differ in ignoring the merges only, which changes nothing for a trained vocabulary.
    assert matched.name == ("llama-bpe" if pre.name == "dbrx" else pre.name)
    assert all(by_name(name) is pre for name in pre.names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_expressions_split_any_text_as_the_published_ones(name: str) -> None:
    ours, published = by_name(name).build(), PUBLISHED[name]()
    for text in SAMPLES:
        assert ours.pre_tokenize_str(text) == published.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("normalizer", "split"),
    [
        (normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
        (None, split_by(r"\s+|\w+")),
        (None, None),
    ],
    ids=["lower case", "compatibility forms", "space in front", "words", "no splitting"],
)
def test_what_llama_cpp_does_not_do_matches_none(normalizer: Any, split: Any) -> None:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, split
    assert matching(tokenizer) is None
    assert matching_short_numbers(tokenizer) is None


def test_composed_characters_may_be_asked_for() -> None:
    """Qwen2's tokenizer has NFC in front, which llama.cpp's own converter leaves out as well."""
    tokenizer = byte_level(split_by(QWEN2_REGEX)).backend_tokenizer
    tokenizer.normalizer = normalizers.NFC()
    assert matching(tokenizer).name == "qwen2"


def test_a_word_that_no_merges_make_needs_the_name_that_minds_the_merges() -> None:
    tokenizer = byte_level(split_by(LLAMA3_REGEX)).backend_tokenizer
    fields = json.loads(tokenizer.to_str())
    fields["model"]["vocab"]["qqq"] = len(fields["model"]["vocab"])
    unreachable = Tokenizer.from_str(json.dumps(fields))
    assert isinstance(unreachable.model, models.BPE)
    assert matching(unreachable).name == "dbrx"
    unreachable.model.ignore_merges = True
    assert matching(unreachable).name == "llama-bpe"


def test_pairs_of_digits_are_like_gpt2_but_for_long_numbers(walker: Tokenizer) -> None:
    assert matching(walker) is None
    assert matching_short_numbers(walker).name == "gpt-2"
    assert len(number_tokens(walker)) == 110
