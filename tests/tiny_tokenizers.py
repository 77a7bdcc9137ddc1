"""Small newly trained tokenizers of the kinds that published models have."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
TEXT = Path(__file__).with_name("test_faults.py").read_text(encoding="utf-8")
"""Python source, which the tokenizers are trained on."""
SAMPLES = (
    "What is 3333+777? In 2023, pi was 3.14159; 1/2 or 12 34567.",
    "def f(x):\n\n    return x['a']\n\t\tif  x:   y",
    "we'll  see   don't!! 'There 'RE I'M  HTTPServer fooBar éÉt",
    "нещо на Български, 我想在apple工作1314151天～ កាន់តែ ¼½² ٣٤٥ 🚀😶\u200d🌫️",
    "    4 spaces,\r\n\r\n tabs\t\t, end  ",
)


def split_by(regex: str) -> Any:
    """A regular expression, then bytes, as Llama-3 and Qwen2 have it."""
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def single_digits() -> Any:
    """Every digit alone, then GPT-2's splitting, as SmolLM2 has it."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def byte_level(split: Any, *, puts_bos: bool = False, texts: Iterable[str] = (TEXT, *SAMPLES * 5)) -> Any:
    """A byte-level BPE of 600 entries that splits text by ``split``; <s> is 0 and </s> 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, puts_bos=puts_bos)


def sentencepiece(*, space_in_front: bool = True, every_merge: bool = True) -> Any:
    """A BPE with tokens for bytes, as Llama-2 (with a space in front) and Gemma (without) have it.

    Args:
        every_merge: two neighbours merge whenever they make a token together, as in a vocabulary of SentencePiece's;
            by default a trained BPE keeps the one way in which each token came about.
    """
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    )
    vocabulary = trained.get_vocab()
    ordered = sorted(set(vocabulary) - set(specials), key=lambda word: vocabulary[word])
    merges = [
        (word[:cut], word[cut:])
        for word in ordered
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    if not every_merge:
        merges = list({left + right: (left, right) for left, right in merges}.values())
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space_in_front else replace
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _wrapped(tokenizer, puts_bos=True)


def _wrapped(tokenizer: Tokenizer, *, puts_bos: bool) -> Any:
    if puts_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
        )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
