"""Passkey retrieval: a key somewhere in a long text, asked for at the end (paper §4.3), in two forms.

The published form repeats a few sentences around a key of five digits. In the varied form the text is that of test
documents, and wordings and kinds of keys change from prompt to prompt, so that a figure does not hang on a single
prompt whose key alone differs. Recall documents hold none of the keys and none of the wordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ropewalk.corpus.recall import held_out_words
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.needle_families import NeedleText
from ropewalk.evaluate.needles import needle_prompt
from ropewalk.evaluate.perplexity import TOKENS_AT_ONCE
from ropewalk.evaluate.prompts import OTHERS, PASSKEY_FORMS, Prompt, Prompts, draw_key
from ropewalk.evaluate.recall import scores
from ropewalk.rope import LengthSwitch, extend

_COUNTS = (
    f"log probability of the key above that of {OTHERS} others, which differ from it in one digit or word; published "
    "and varied form; keys and wordings not in training"
)
PROTOCOL = f"greedy decoding, exact match of the key; {_COUNTS}"
FORCED_PROTOCOL = f"each token of the key the likeliest; {_COUNTS}"
"""How keys are counted in prompts that are longer than a chunk. Such prompts are read layer by layer, and greedy
decoding would need a KV cache of all layers. Greedy decoding would find the same keys, and also those that a model
writes in other tokens than the tokenizer does."""


def protocol(length: int, *, chunk: int) -> str:
    """How keys in prompts of ``length`` tokens are counted, which are read ``chunk`` tokens at a time."""
    return PROTOCOL if length <= chunk else FORCED_PROTOCOL


@dataclass(frozen=True)
class Wording:
    """What states a key and what asks for it."""

    statement: str
    question: str
    """Ends where the key follows."""
    task: str = ""
    """Stands before the text."""


PUBLISHED = Wording(
    "\nThe pass key is {key}. Remember it. {key} is the pass key.\n",
    "\nWhat is the pass key? The pass key is",
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n",
)
VARIED = (
    Wording("\nThe pass-code is {key}. Keep it: the pass-code is {key}.\n", "\nSay the pass-code. The pass-code is"),
    Wording(
        "\nThis is the hidden key: {key}. Keep {key} as the hidden key.\n",
        "\nSo what is the hidden key? This is the hidden key:",
    ),
    Wording(
        "\nRemember: the combination is {key}. The combination is {key}.\n",
        "\nDo you remember the combination? The combination is",
    ),
    Wording("\nPass-phrase: {key}. Again, pass-phrase: {key}.\n", "\nPlease repeat. Pass-phrase:"),
)
_Pieces = Sequence[str]
"""A key in parts, each of which may differ in another key of its kind."""


def _five_digits(rng: np.random.Generator) -> _Pieces:
    return str(draw_key(rng))


def _leading_zero(rng: np.random.Generator) -> _Pieces:
    """Seven digits; no number in a recall document begins with 0."""
    return f"0{rng.integers(10**6):06d}"


def _nine_digits(rng: np.random.Generator) -> _Pieces:
    """More digits than any number in a recall document has."""
    return str(rng.integers(10**8, 10**9))


def _words(rng: np.random.Generator) -> _Pieces:
    first, second = held_out_words(rng)
    return first, f"_{second}"


KEYS: tuple[Callable[[np.random.Generator], _Pieces], ...] = (_five_digits, _leading_zero, _nine_digits, _words)
"""Each draws a key of one kind."""


def fillers(documents: TokenStore, *, tokens: int, count: int, seed: int) -> list[tuple[int, list[int]]]:
    """``count`` pieces of ``tokens`` tokens, each with the number of the document that it begins in.

    The pieces come from as many documents as possible, in turn, each from a random place. If no document is long
    enough, a piece continues in the documents after it, and after the last one in the first.

    Raises:
        ValueError: the documents have no tokens at all.
    """
    if not len(documents.tokens):
        raise ValueError(f"passkeys are hidden in test documents, found no tokens in {documents.path}")
    rng = np.random.default_rng((seed, tokens))
    enough = documents.long_documents(tokens)
    order = rng.permutation(enough if len(enough) else len(documents)).tolist()
    pieces = []
    for place in range(count):
        first = number = order[place % len(order)]
        start = int(rng.integers(max(documents.length(first) - tokens, 0) + 1))
        ids = documents.document(first)[start : start + tokens].tolist()
        while len(ids) < tokens:
            number = (number + 1) % len(documents)
            ids += documents.document(number)[: tokens - len(ids)].tolist()
        pieces.append((first, ids))
    return pieces


def passkey_prompts(
    tokenizer: Any, *, length: int, depths: int, trials: int, seed: int, texts: Sequence[tuple[int, list[int]]] = ()
) -> Prompts:
    """``trials`` prompts, spread over ``depths`` bands of equal width from the filler's start to its end.

    The place of a key is drawn within its band. A prompt's depth is the middle of the band; prompts of one band, or of
    the same document in the varied form, are a cluster.

    Args:
        texts: number of a document and ids of a piece of it, for each prompt; without texts, in the published form.

    Raises:
        ValueError: the statement and the question alone are longer than ``length``.
    """
    family = "passkey_varied" if texts else "passkey"
    rng = np.random.default_rng((seed, length, *family.encode()))
    prompts = []
    for trial in range(trials):
        # Where there are fewer trials than bands, the two forms take different bands.
        band = (2 * trial + bool(texts)) * depths // (2 * trials)
        wording = VARIED[trial % len(VARIED)] if texts else PUBLISHED
        draw = KEYS[int(rng.integers(len(KEYS)))] if texts else _five_digits
        number, ids = texts[trial] if texts else (band, None)
        prompt = passkey_prompt(
            tokenizer, keys=_with_others(draw, rng), length=length, depth=(band + rng.random()) / depths,
            wording=wording, filler=ids, family=family,
        )  # fmt: skip
        prompts.append(replace(prompt, depth=round((band + 0.5) / depths, 4), cluster=number))
    return Prompts(family, length, tuple(sorted(prompts, key=lambda prompt: (prompt.depth, prompt.cluster))))


def _with_others(draw: Callable[[np.random.Generator], _Pieces], rng: np.random.Generator) -> list[str]:
    """A key and others that differ from it in one digit or word each, so that only the whole key identifies it."""
    key = list(draw(rng))
    keys = {"".join(key): None}
    while len(keys) <= OTHERS:
        place, other = int(rng.integers(len(key))), draw(rng)
        keys["".join([*key[:place], other[place], *key[place + 1 :]])] = None
    return list(keys)


def passkey_prompt(
    tokenizer: Any,
    *,
    keys: Sequence[str],
    length: int,
    depth: float,
    wording: Wording = PUBLISHED,
    filler: Sequence[int] | None = None,
    family: str = "passkey",
) -> Prompt:
    """A prompt that has exactly ``length`` token ids together with its answer, BOS first.

    Args:
        keys: the key, and the others that its likelihood is compared with.
        depth: where in the filler the key stands, 0 for its start and 1 for its end.
        filler: token ids of the text; by default the published sentences, repeated.

    Raises:
        ValueError: the statement and the question alone are longer than ``length``.
    """
    key, *others = keys
    text = NeedleText(
        wording.task, (wording.statement.format(key=key),), wording.question, (key,), (key,), tuple(others)
    )
    rng = np.random.default_rng(0)
    prompt = needle_prompt(tokenizer, family, text, filler, length=length, depth=depth, rng=rng)
    # The longest way to write the key is a token for each character and one for the space before them.
    return replace(prompt, decode_tokens=len(tokenizer.decode(prompt.right[0]).strip()) + 1)


def passkey_accuracy(
    model: Any, tokenizer: Any, switch: LengthSwitch, prompts: Prompts, *, chunk: int = TOKENS_AT_ONCE
) -> list[dict[str, Any]]:
    """A row {length, form, depth, cluster, trials, correct, likely, nan} per depth and cluster; see `protocol`.

    ``correct`` counts the keys that greedy decoding would write, ``likely`` those that are likelier than all others of
    the prompt, ``nan`` the trials in which the logits were NaN, all under the switch's scaling for the length.
    """
    extend(model, switch.for_length(prompts.length))
    rows = []
    for (depth, cluster), group in groupby(prompts.prompts, lambda prompt: (prompt.depth, prompt.cluster)):
        trials = [scores(model, tokenizer, prompts.family, prompt, chunk=chunk) for prompt in group]
        correct, likely, nan = (int(sum(column)) for column in zip(*trials, strict=True))
        place = {"length": prompts.length, "form": PASSKEY_FORMS[prompts.family], "depth": depth, "cluster": cluster}
        rows.append({**place, "trials": len(trials), "correct": correct, "likely": likely, "nan": nan})
    return rows
