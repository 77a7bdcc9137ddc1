"""The vocabulary of a GGUF file is what the tokenizer does, not what config.json says."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ropewalk.models.base import load_tokenizer
from ropewalk.models.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    vocabulary_of,
)
from tiny_models import tiny_llama
from tiny_tokenizers import LLAMA3_REGEX, byte_level, sentencepiece, single_digits, split_by
from workspace import ROOT, run_script, write_overrides


def made(tokenizer: Any, *, more: int = 0, eos: int | None = None) -> Vocabulary:
    return vocabulary_of(tokenizer, size=len(tokenizer) + more, eos=eos)


def test_bos_goes_in_front_where_the_tokenizer_puts_it() -> None:
    llama3 = made(byte_level(split_by(LLAMA3_REGEX), puts_bos=True))
    smollm = made(byte_level(single_digits()))
    assert (llama3.pre, llama3.add_bos, llama3.add_eos) == ("llama-bpe", True, False)
    assert (smollm.pre, smollm.add_bos, smollm.add_eos) == ("smollm", False, False)
    assert llama3.special == smollm.special == {"bos": 0, "eos": 1}


def test_eos_goes_to_the_end_where_the_tokenizer_puts_it() -> None:
    tokenizer = byte_level(single_digits())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    vocabulary = made(tokenizer)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, True)


def test_a_tokenizer_that_names_no_eos_takes_the_models() -> None:
    raw = byte_level(single_digits()).backend_tokenizer
    make: Any = PreTrainedTokenizerFast
    assert made(make(tokenizer_object=raw), eos=1).special == {"eos": 1}


def test_every_token_has_its_type() -> None:
    tokenizer = byte_level(single_digits())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    vocabulary = made(tokenizer, more=3)
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert vocabulary.types[:3] == [CONTROL, CONTROL, NORMAL]
    assert vocabulary.types[think:] == [USER_DEFINED, UNUSED, UNUSED, UNUSED]
    assert vocabulary.tokens[think + 1 :] == [f"[PAD{think + 1 + number}]" for number in range(3)]


def test_the_chat_template_goes_with_it() -> None:
    tokenizer = byte_level(single_digits())
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert made(tokenizer).chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece_merges_by_scores(space: bool) -> None:
    tokenizer = sentencepiece(space_in_front=space)
    vocabulary = made(tokenizer)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_space_prefix) == ("llama", "default", space)
    assert vocabulary.types[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    merged = [left + right for left, right in _merges(tokenizer)]
    assert [scores[token] for token in merged] == sorted((scores[token] for token in merged), reverse=True)


def test_a_space_that_is_put_in_front_only_where_there_is_none_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    with caplog.at_level(logging.WARNING):
        assert made(tokenizer).add_space_prefix
    assert "llama.cpp reads a text that begins with a space as if there were two" in caplog.text


def _merges(tokenizer: Any) -> list[Any]:
    return list(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])


def _unigram() -> Any:
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)))


def _two_in_front() -> Any:
    tokenizer = byte_level(single_digits())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> </s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def _split_sentencepiece() -> Any:
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (
            lambda: byte_level(split_by(r"\s+|\w+|[^\w\s]+")),
            "llama.cpp knows no pre-tokenizer that splits text as this",
        ),
        (_unigram, r"llama.cpp merges pairs \(BPE\), and this tokenizer is of type Unigram"),
        (
            _two_in_front,
            r"llama.cpp puts one token in front of a text and at its end, this tokenizer \[0, 1\] and \[\]",
        ),
        (
            _split_sentencepiece,
            "llama.cpp keeps a text with byte tokens whole, and this tokenizer splits or rewrites it",
        ),
        (lambda: sentencepiece(every_merge=False), "llama.cpp merges by a score for each token, which cannot say"),
    ],
    ids=["splitting", "unigram", "two in front", "split sentencepiece", "merges"],
)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tokenizer: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        made(tokenizer())


def test_more_tokens_than_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="gives ids up to 599, and the model has 598 embeddings"):
        made(byte_level(single_digits()), more=-2)


def test_the_walkers_numbers_are_tokens_that_llama_cpp_takes_out_first(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vocabulary = made(load_tokenizer(str(ROOT / "models" / "walker")))
    assert "llama.cpp cuts numbers of three or more digits into other tokens" in caplog.text
    assert vocabulary.pre == "gpt-2"
    numbers = {word for word, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == USER_DEFINED}
    assert numbers == {*map(str, range(100)), *(f"0{digit}" for digit in range(10))}


def test_compose_refuses_a_tokenizer_that_the_export_would(scratch: Path) -> None:
    tiny_llama(vocab_size=600, max_position_embeddings=256).save_pretrained("model")
    byte_level(split_by(r"\s+|\w+|[^\w\s]+")).save_pretrained("model")
    write_overrides(scratch, "model=hf", "model.path=model", "export.gguf=float16")
    reason = r"export\.gguf: the tokenizer of model\.path model cannot be written: llama\.cpp knows no pre-tokenizer"
    with pytest.raises(SystemExit, match=f"compose: {reason}"):
        run_script("compose")
