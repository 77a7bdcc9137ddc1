"""A tokenizer as the vocabulary of a GGUF file, with which llama.cpp gives the same ids.

llama.cpp has two kinds of vocabulary for causal language models. With "gpt2", a pre-tokenizer splits the text, and the
merges are applied within each piece (`ropewalk.models.pretokenizers`). With "llama", which is SentencePiece's, the text
is one piece, and the two neighbours whose joint token has the highest score are merged first.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ropewalk.models.base import load_tokenizer
from ropewalk.models.pretokenizers import matching, matching_short_numbers, number_tokens

log = logging.getLogger(__name__)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, as ``gguf.TokenType`` numbers them."""
_SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """Contents of the keys ``tokenizer.*``."""

    model: str
    """gpt2 or llama."""
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    """The merges of a BPE on bytes (gpt2), in their order."""
    scores: Sequence[float]
    """The scores of a vocabulary with tokens for bytes (llama), one for each token."""
    add_space_prefix: bool
    add_bos: bool
    add_eos: bool
    special: Mapping[str, int]
    """Ids of the special tokens by their names (bos, eos, unk, pad), without those that the tokenizer lacks."""
    chat_template: str | Sequence[Mapping[str, str]] | None

    def write(self, writer: Any) -> None:
        """Add the keys to ``writer``, a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            # gguf omits an empty list, and llama.cpp loads no file without merges; it reads this one as no merge.
            writer.add_token_merges(self.merges or [" "])
        else:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def check_tokenizer(path: str, *, trust_remote_code: bool = False) -> None:
    """Raise ValueError, with the reason, where llama.cpp would give other ids than the tokenizer of ``model.path``."""
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    try:
        vocabulary_of(tokenizer, size=max(tokenizer.get_vocab().values()) + 1)
    except ValueError as error:
        raise ValueError(f"export.gguf: the tokenizer of model.path {path} cannot be written: {error}") from None


def vocabulary_of(tokenizer: Any, *, size: int, eos: int | None = None) -> Vocabulary:
    """The vocabulary of a transformers tokenizer.

    Args:
        size: rows of the model's embedding.
        eos: id at which the model stops, where the tokenizer names none.

    Raises:
        ValueError: llama.cpp would give other ids than this tokenizer; the message is the reason.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"a tokenizer of class {type(tokenizer).__name__} has no tokenizer.json")
    fields = json.loads(backend.to_str())
    model = fields["model"]
    if model["type"] != "BPE":
        raise ValueError(f"llama.cpp merges pairs (BPE), and this tokenizer is of type {model['type']}")
    if (last_id := max(model["vocab"].values())) >= size:
        raise ValueError(f"the tokenizer gives ids up to {last_id}, and the model has {size} embeddings")
    # transformers' tokenizer classes add special tokens, for which a model with another vocabulary has no embedding.
    words = {token: word for word, token in backend.get_vocab().items() if token < size}
    types = dict.fromkeys(words, NORMAL)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    added = {item["id"]: item for item in fields["added_tokens"] if item["id"] < size}
    scores: dict[str, float] = {}
    if model["byte_fallback"]:
        space_prefix, pre = _puts_space_in_front(backend), "default"
        ordinary = [word for token, word in words.items() if token not in added and not _is_byte(word)]
        scores = _scores(ordinary, merges)
        types |= {token: BYTE for token, word in words.items() if _is_byte(word)}
        types |= {token: UNKNOWN for token, word in words.items() if word == model["unk_token"]}
    else:
        space_prefix, (pre, numbers) = False, _pre_tokenizer(backend)
        types |= {token: USER_DEFINED for token, word in words.items() if word in numbers}
    for token, item in added.items():
        if types[token] != UNKNOWN:
            types[token] = CONTROL if item["special"] else USER_DEFINED
    # llama.cpp looks for these in the text as it is, before it writes spaces in SentencePiece's way.
    words |= {token: words[token].replace(_SPACE, " ") for token in added if types[token] == USER_DEFINED}
    bos, last = _bos_and_eos(backend)
    special = {"bos": bos, "eos": last, "unk": None, "pad": None}
    for name, token in special.items():
        special[name] = getattr(tokenizer, f"{name}_token_id") if token is None else token
    special["eos"] = eos if special["eos"] is None else special["eos"]
    template = tokenizer.chat_template
    return Vocabulary(
        model="llama" if model["byte_fallback"] else "gpt2",
        pre=pre,
        tokens=[words.get(token, f"[PAD{token}]") for token in range(size)],
        types=[types.get(token, UNUSED) for token in range(size)],
        merges=[" ".join(pair) for pair in merges],
        scores=[scores.get(words.get(token, ""), 0.0) for token in range(size)],
        add_space_prefix=space_prefix,
        add_bos=bos is not None,
        add_eos=last is not None,
        special={name: token for name, token in special.items() if token in words},
        chat_template=[{"name": name, "template": text} for name, text in template.items()]
        if isinstance(template, dict)
        else template,
    )


def _pre_tokenizer(tokenizer: Tokenizer) -> tuple[str, Collection[str]]:
    """The name of the pre-tokenizer, and the ordinary tokens that llama.cpp must match before it runs."""
    if pre := matching(tokenizer):
        return pre.name, ()
    if pre := matching_short_numbers(tokenizer):
        log.warning(
            "llama.cpp cuts numbers of three or more digits into other tokens than this tokenizer, which reads them "
            "from the left in pairs; every other text has the same tokens"
        )
        return pre.name, number_tokens(tokenizer)
    raise ValueError("llama.cpp knows no pre-tokenizer that splits text as this tokenizer does")


def _puts_space_in_front(tokenizer: Tokenizer) -> bool:
    """Whether a SentencePiece tokenizer reads a text as if a space stood in front of it."""

    def pieces(text: str) -> list[str]:
        text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        return (
            [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
            if tokenizer.pre_tokenizer
            else [text]
        )

    text = "Ab  c\n\td 12 ½x"
    written = text.replace(" ", _SPACE)
    if pieces(text) not in ([written], [_SPACE + written]):
        raise ValueError("llama.cpp keeps a text with byte tokens whole, and this tokenizer splits or rewrites it")
    in_front = pieces(text) != [written]
    if in_front and pieces(" a") == [f"{_SPACE}a"]:
        log.warning("llama.cpp reads a text that begins with a space as if there were two, unlike this tokenizer")
    return in_front


def _scores(words: Collection[str], merges: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores with which llama.cpp merges in the same order: for each merged token, minus the rank of its first merge.

    Raises:
        ValueError: two tokens form a third without a merge, or the merges into one token are not consecutive; neither
            happens in a SentencePiece vocabulary.
    """
    scores: dict[str, float] = {}
    previous = ""
    for place, (left, right) in enumerate(merges):
        token = left + right
        if token in scores and token != previous:
            break
        scores.setdefault(token, -float(place))
        previous = token
    else:
        known, pairs = set(words), {(left, right) for left, right in merges}
        splits = ((word[:cut], word[cut:]) for word in words for cut in range(1, len(word)))
        if all(pair in pairs for pair in splits if all(len(part) == 1 or part in known for part in pair)):
            return scores
    raise ValueError(
        "llama.cpp merges by a score for each token, which cannot say the order of this tokenizer's merges"
    )


def _is_byte(word: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", word) is not None


def _bos_and_eos(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The tokens that the tokenizer puts in front of a text and at its end."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    front = len(whole) - next(length for length in range(len(whole), 0, -1) if whole[-length:][: len(plain)] == plain)
    first, last = whole[:front], whole[front + len(plain) :]
    if len(first) > 1 or len(last) > 1:
        raise ValueError(
            f"llama.cpp puts one token in front of a text and at its end, this tokenizer {first} and {last}"
        )
    return (first[0] if first else None), (last[0] if last else None)
