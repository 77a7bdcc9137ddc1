"""llama.cpp's pre-tokenizers: how each value of ``tokenizer.ggml.pre`` splits a text before byte-level BPE.

The regular expressions are those of ``src/llama-vocab.cpp``; each splits the pieces that the one before it left. Where
a comment there quotes the expression of the published tokenizer.json, which C++ cannot express, that one is used here.

llama.cpp's own converter knows a tokenizer by the hash of its ids for a probe text, so it knows published vocabularies
only. Here the pieces of that text are compared, which are the same for a newly trained vocabulary.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_PATHS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of splitting a text."""

    names: tuple[str, ...]
    """Values of ``tokenizer.ggml.pre`` that split so; a file is written with the first."""
    expressions: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a piece that is in the vocabulary becomes one token, whatever the merges make of it."""

    @property
    def name(self) -> str:
        return self.names[0]

    def build(self) -> Any:
        """The same splitting as a pre-tokenizer of the library tokenizers."""
        splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in self.expressions]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = (
    PreTokenizer(
        ("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "exaone4", "gigachat", "mellum", "modern-bert"), (_GPT2,)
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", _GPT2),
    ),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_LLAMA3,),
        ignore_merges=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe"), (_LLAMA3,)),
    PreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}",),
    ),
    PreTokenizer(("tekken",), (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}",), ignore_merges=True),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_PATHS}",),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        ),
    ),
    PreTokenizer(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    PreTokenizer(
        ("seed-coder",),
        (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    ),
    PreTokenizer(
        ("minicpm5",), (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"), ignore_merges=True
    ),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    PreTokenizer(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    PreTokenizer(("viking",), (_BLOOM, r"\p{N}")),
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
)

_PROBE = (
    # llama.cpp's own (convert_hf_to_gguf.py), with what it leaves out: capitals within words, paths, marks, fractions.
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you "
    "sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL HTTPServer fooBar éÉtÉé snake_case a/b//\n"
    "//c\r\n\r\n  4 spaces\n    56\n\tif x:\n        return -1\r ¼½²٣٤٥ x1 1x (12) [345] $6 +7 नमस्ते ǅ ʰ q\u0323 end  "
)
_SHORT_NUMBERS = " ".join(
    f"{number} {number}a a{number} ({number})\n{number}\n\n  {number}.{number}-{number}\t{number} 'RE{number}"
    for number in [*range(10), *(f"{pair:02d}" for pair in range(100))]
)


def by_name(name: str) -> PreTokenizer | None:
    """The pre-tokenizer that llama.cpp calls ``name``, None where it is not among these."""
    return next((pre for pre in PRE_TOKENIZERS if name in pre.names), None)


def matching(tokenizer: Tokenizer) -> PreTokenizer | None:
    """The pre-tokenizer with which llama.cpp gives the ids of ``tokenizer``, a byte-level BPE, for every text."""
    if _keeps_text(tokenizer):
        expected = tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)
        for pre in PRE_TOKENIZERS:
            if pre.build().pre_tokenize_str(_PROBE) == expected and _merges_as(tokenizer, pre):
                return pre
    return None


def matching_short_numbers(tokenizer: Tokenizer) -> PreTokenizer | None:
    """As `matching`, for texts whose numbers have at most two digits, if every number below 100 is one token.

    This is for tokenizers that cut numbers into pairs of digits, which no pre-tokenizer of llama.cpp does. llama.cpp
    gives the same ids if `number_tokens` are user-defined tokens, which it matches before all else. In longer numbers
    it matches them in the order of its list, not from the left.
    """
    numbers = number_tokens(tokenizer)
    if len(numbers) != 110 or not _keeps_text(tokenizer):
        return None
    letters = re.sub(r"[\d½¼²]+", "x", _PROBE)
    expected = tokenizer.pre_tokenizer.pre_tokenize_str(letters)
    ids = tokenizer.encode(_SHORT_NUMBERS, add_special_tokens=False).ids
    for pre in PRE_TOKENIZERS:
        if pre.build().pre_tokenize_str(letters) == expected and _merges_as(tokenizer, pre):
            copy = Tokenizer.from_str(tokenizer.to_str())
            copy.pre_tokenizer = pre.build()
            copy.add_tokens([AddedToken(number, normalized=False) for number in numbers])
            if copy.encode(_SHORT_NUMBERS, add_special_tokens=False).ids == ids:
                return pre
    return None


def number_tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokens of one and of two digits."""
    return [token for token in tokenizer.get_vocab() if re.fullmatch(r"[0-9]{1,2}", token)]


def _keeps_text(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has a pre-tokenizer, and no normalizer beyond NFC, which llama.cpp leaves out."""
    normalizer = tokenizer.normalizer
    return tokenizer.pre_tokenizer is not None and (normalizer is None or normalizer.normalize_str(_PROBE) == _PROBE)


def _merges_as(tokenizer: Tokenizer, pre: PreTokenizer) -> bool:
    """Whether pieces become the same tokens under ``pre``, which may differ in whether it ignores the merges."""
    fields = json.loads(tokenizer.to_str())
    if bool(fields["model"].get("ignore_merges")) == pre.ignore_merges:
        return True
    fields["model"]["ignore_merges"] = False
    merging = Tokenizer.from_str(json.dumps(fields)).model
    added = {token["content"] for token in fields["added_tokens"]}
    words: Sequence[str] = [word for word in fields["model"]["vocab"] if word not in added]
    return all(len(merging.tokenize(word)) == 1 for word in words)
