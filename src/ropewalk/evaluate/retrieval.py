"""Retrieval or long context: the same questions answered from the whole document in the extended window, and by the
base model from what BM25 finds of the document within its original window.

Two tasks. ``passkey``: a five-digit key in filler text. ``needle``: one of several named numbers in a test document,
as RULER's multi-key needles are (arXiv 2404.06654).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from ropewalk.config import RetrievalConfig
from ropewalk.corpus.recall import joined
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.passkey import QUESTION, draw_key, passkey_row
from ropewalk.evaluate.prompts import common_start, encode, first_id
from ropewalk.evaluate.road import Road
from ropewalk.models.loss import hidden_states
from ropewalk.progress import Progress
from ropewalk.rope import LengthSwitch, RopeScaling, extend, scaling_for_length

PROTOCOL = (
    "greedy decoding, exact match; interval 95 % by Wilson; seconds of one question alone, finding and reading, "
    "without decoding"
)
_NEEDLE = "\nThe special number for {name} is {number}.\n"
_NEEDLE_QUESTION = "\nWhat is the special number for {name}? The special number for {name} is"
_NAMES = "amber birch cobalt dune ember fjord grove harbor island jasper kelp lagoon".split()
_NEEDLES = 4


@dataclass(frozen=True)
class Question:
    """Token ids of a document, of what is asked about it and of the answer."""

    task: str
    document: tuple[int, ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    """The question as text, which BM25 looks for."""


def passkey_question(tokenizer: Any, rng: np.random.Generator, *, length: int, depth: float) -> Question:
    """The passkey task, document, question and answer of ``length`` tokens together with BOS."""
    row, count = passkey_row(tokenizer, key=draw_key(rng), length=length, depth=depth)
    asked = count + len(encode(tokenizer, QUESTION))
    return Question(
        "passkey", tuple(row[1:-asked]), tuple(row[-asked:-count]), tuple(row[-count:]), text=QUESTION.strip()
    )


def needle_question(
    tokenizer: Any, rng: np.random.Generator, tokens: Sequence[int], *, length: int, depth: float
) -> Question:
    """A question on one of `_NEEDLES` numbers in a text, the one that is asked for at ``depth``, the others anywhere.

    Args:
        tokens: of the text, without BOS; as many as fit are taken.

    Raises:
        ValueError: ``tokens`` are too few, or ``length`` leaves no room for the needles.
    """
    names = [str(name) for name in rng.choice(_NAMES, size=_NEEDLES, replace=False)]
    numbers = [draw_key(rng) for _ in names]
    needles = [
        encode(tokenizer, _NEEDLE.format(name=name, number=number)) for name, number in zip(names, numbers, strict=True)
    ]
    text = _NEEDLE_QUESTION.format(name=names[0])
    whole = encode(tokenizer, f"{text} {numbers[0]}")
    asked = common_start(encode(tokenizer, text), whole)
    question, answer = whole[:asked], whole[asked:]
    room = length - 1 - sum(map(len, needles)) - len(whole)
    if room < 0 or len(tokens) < room:
        raise ValueError(
            f"a needle question of {length} tokens needs room for {length - room} and {max(room, 0)} "
            f"tokens of text with this tokenizer, found {len(tokens)} tokens of text"
        )
    places = [depth, *rng.random(_NEEDLES - 1)]
    stated = zip((round(share * room) for share in places), needles, strict=True)
    document = joined(list(tokens[:room]), list(stated))
    return Question("needle", tuple(document), tuple(question), tuple(answer), text=text.strip())


def retrieve(tokenizer: Any, question: Question, *, room: int, chunk_tokens: int) -> list[int]:
    """Token ids of the document's best chunks by BM25, ``room`` at most, in the document's order.

    Chunks overlap by half, so that what is shorter than that is whole in one of them.

    Raises:
        ValueError: bm25s is not installed; names the extra.
    """
    try:
        import bm25s
    except ModuleNotFoundError:
        raise ValueError(
            "evaluate.retrieval needs bm25s, which is not installed; pip install 'ropewalk[retrieval]'"
        ) from None
    document = question.document
    starts = range(0, max(len(document) - chunk_tokens // 2, 1), max(chunk_tokens // 2, 1))
    chunks = [range(start, min(start + chunk_tokens, len(document))) for start in starts]
    texts = [tokenizer.decode([document[place] for place in chunk]) for chunk in chunks]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    query = bm25s.tokenize([question.text], show_progress=False)
    found, _ = index.retrieve(query, k=len(chunks), show_progress=False)
    taken: set[int] = set()
    for chunk in (chunks[int(number)] for number in found[0]):
        new = [place for place in chunk if place not in taken]
        if len(taken) + len(new) > room:
            break
        taken.update(new)
    return [document[place] for place in sorted(taken)]


def compare(
    models: dict[str, Any],
    tokenizer: Any,
    store: TokenStore,
    switch: LengthSwitch,
    plain: RopeScaling,
    config: RetrievalConfig,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """A row per task, length and way of reading: accuracy, tokens read and seconds of a question.

    Args:
        models: of ``finetuned``, which reads whole documents under ``switch``, and of ``base``, which reads chunks
            under ``plain`` in that scaling's original window.

    Raises:
        ValueError: a test document is too short, a length leaves no room, or bm25s is not installed.
    """
    bos = first_id(tokenizer)
    rows = []
    with Progress(total=2 * len(config.lengths) * config.trials, desc="retrieval", unit="question") as bar:
        for length in config.lengths:
            texts = store.first_tokens(length, documents=None)[:, 1:]
            for task in ("passkey", "needle"):
                rng = np.random.default_rng((seed, length))
                results: dict[str, list[_Result]] = {"long": [], "retrieved": []}
                for trial in range(config.trials):
                    depth = (trial + 0.5) / config.trials
                    if task == "passkey":
                        question = passkey_question(tokenizer, rng, length=length, depth=depth)
                    else:
                        text = texts[trial % len(texts)].tolist()
                        question = needle_question(tokenizer, rng, text, length=length, depth=depth)
                    scaling = scaling_for_length(switch, length)
                    results["long"].append(_whole(models["finetuned"], scaling, question, bos=bos))
                    chunks = _chunks(
                        models["base"], plain, tokenizer, question, bos=bos, chunk_tokens=config.chunk_tokens
                    )
                    results["retrieved"].append(chunks)
                    bar.update(1)
                rows += [_row(task, way, length, found) for way, found in results.items()]
    return rows


def retrieval_rows(
    road: Road, models: dict[str, Any], tokenizer: Any, store: TokenStore, *, seed: int
) -> list[dict[str, Any]]:
    """Rows of `compare` under the road's scalings; none where no lengths are asked for, or not the searched factors."""
    config = road.config.retrieval
    if not config.lengths or "longrope" not in road.methods:
        return []
    return compare(models, tokenizer, store, road.switch, road.plain, config, seed=seed)


@dataclass(frozen=True)
class _Result:
    correct: bool
    held: bool
    """Whether the answer stands in what was read."""
    tokens: int
    seconds: float


def _whole(model: Any, scaling: RopeScaling, question: Question, *, bos: int) -> _Result:
    start = time.perf_counter()
    prompt = [bos, *question.document, *question.question]
    correct = _answers(model, scaling, prompt, question.answer)
    return _Result(correct, True, len(prompt), time.perf_counter() - start)


def _chunks(
    model: Any, scaling: RopeScaling, tokenizer: Any, question: Question, *, bos: int, chunk_tokens: int
) -> _Result:
    room = scaling.original_length - 1 - len(question.question) - len(question.answer)
    if room < chunk_tokens:
        raise ValueError(
            f"evaluate.retrieval.chunk_tokens must not be above the {room} tokens that the base model's window of "
            f"{scaling.original_length} leaves beside the question, found {chunk_tokens}"
        )
    start = time.perf_counter()
    found = retrieve(tokenizer, question, room=room, chunk_tokens=chunk_tokens)
    prompt = [bos, *found, *question.question]
    correct = _answers(model, scaling, prompt, question.answer)
    seconds = time.perf_counter() - start
    held = tokenizer.decode(question.answer).strip() in tokenizer.decode(found)
    return _Result(correct, held, len(prompt), seconds)


@torch.no_grad()
def _answers(model: Any, scaling: RopeScaling, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether greedy decoding gives the answer: exactly when each of its tokens is the likeliest after those before."""
    extend(model, scaling)
    ids = torch.tensor([[*prompt, *answer]], device=next(model.parameters()).device)
    states = hidden_states(model, ids)[0, len(prompt) - 1 : -1]
    best = model.get_output_embeddings()(states).argmax(-1)
    return bool((best == ids[0, len(prompt) :]).all())


def _row(task: str, way: str, length: int, results: Sequence[_Result]) -> dict[str, Any]:
    correct = sum(result.correct for result in results)
    interval = binomtest(correct, len(results)).proportion_ci(method="wilson")
    return {
        "task": task,
        "way": way,
        "model": "finetuned" if way == "long" else "base",
        "length": length,
        "trials": len(results),
        "correct": correct,
        "accuracy": correct / len(results),
        "low": float(interval.low),
        "high": float(interval.high),
        "held": sum(result.held for result in results) / len(results),
        "tokens": sum(result.tokens for result in results) / len(results),
        "seconds": sum(result.seconds for result in results) / len(results),
        "protocol": PROTOCOL,
    }
