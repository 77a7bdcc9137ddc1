"""Retrieval or long context: the same prompts answered from the whole document in the extended window, and by the base
model from what BM25 finds of the document within its original window.

The tasks are the passkey's and the needle families'; one family, multi_key_text, asks about a test document.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluate.drawing import DrawnPrompts, retrieval_draws
from ropewalk.evaluate.prompts import Prompt, Prompts
from ropewalk.evaluate.recall import answered, decoded_share, is_likeliest, read_prompt
from ropewalk.evaluate.road import Road
from ropewalk.evaluate.uncertainty import share_interval
from ropewalk.progress import Progress
from ropewalk.rope import LengthSwitch, RopeScaling, extend, scaling_for_length

PROTOCOL = (
    "greedy decoding, the passkey exactly, else the share of the answers in the decoded text; interval 95 % by Wilson; "
    "log probability of the right answer above all distractors'; seconds of one prompt alone: finding, reading and "
    "decoding"
)


def retrieve(tokenizer: Any, prompt: Prompt, *, room: int, chunk_tokens: int) -> list[int]:
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
    document = prompt.document
    starts = range(0, max(len(document) - chunk_tokens // 2, 1), max(chunk_tokens // 2, 1))
    chunks = [range(start, min(start + chunk_tokens, len(document))) for start in starts]
    texts = [tokenizer.decode([document[place] for place in chunk]) for chunk in chunks]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    query = bm25s.tokenize([prompt.asked], show_progress=False)
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
    tasks: Iterable[Prompts],
    switch: LengthSwitch,
    plain: RopeScaling,
    *,
    chunk_tokens: int,
    chunk: int,
) -> list[dict[str, Any]]:
    """A row per task and way of reading: both scores, tokens read and seconds of a prompt.

    Args:
        models: of ``finetuned``, which reads whole documents under ``switch``, and of ``base``, which reads chunks
            under ``plain`` in that scaling's original window.
        chunk_tokens: tokens in a retrieved chunk.
        chunk: prompt tokens in a forward pass, at most.

    Raises:
        ValueError: the window has no room for a chunk, or bm25s is not installed.
    """
    rows = []
    for task in tasks:
        whole = _Way("long", models["finetuned"], scaling_for_length(switch, task.length))
        parts = _Way("retrieved", models["base"], plain, chunk_tokens)
        found: dict[_Way, list[_Answer]] = {whole: [], parts: []}
        for prompt in task.prompts:
            for way, answers in found.items():
                answers.append(_answer(way, tokenizer, task, prompt, chunk=chunk))
        rows += [_row(way, task, answers) for way, answers in found.items()]
    return rows


def retrieval_rows(road: Road, models: dict[str, Any], prompts: DrawnPrompts, *, seed: int) -> list[dict[str, Any]]:
    """Rows of `compare` under the road's scalings; none where no lengths are asked for, or not the searched factors."""
    if "longrope" not in road.methods:
        return []
    config = road.config
    draws = list(retrieval_draws(config, seed=seed))
    with Progress(draws, desc="retrieval", unit="task") as bar:
        return compare(
            models,
            prompts.tokenizer,
            map(prompts.of, bar),
            road.switch,
            road.plain,
            chunk_tokens=config.retrieval.chunk_tokens,
            chunk=config.chunk_tokens,
        )


@dataclass(frozen=True, eq=False)
class _Way:
    """A model that reads whole documents, or chunks of them, under a scaling."""

    name: str
    model: Any
    scaling: RopeScaling
    chunk_tokens: int | None = None
    """Tokens in a chunk; None for whole documents."""

    def read(self, tokenizer: Any, task: Prompts, prompt: Prompt) -> Sequence[int]:
        """Token ids of what is read of the document."""
        if self.chunk_tokens is None:
            return prompt.document
        answer = task.length - len(prompt.ids)
        room = self.scaling.original_length - 1 - prompt.question_tokens - answer
        if room < self.chunk_tokens:
            raise ValueError(
                f"evaluate.retrieval.chunk_tokens must not be above the {room} tokens that the base model's window of "
                f"{self.scaling.original_length} leaves beside question and answer of the task {task.family}, found "
                f"{self.chunk_tokens}"
            )
        return retrieve(tokenizer, prompt, room=room, chunk_tokens=self.chunk_tokens)


@dataclass(frozen=True)
class _Answer:
    share: float
    """Of the right answers in the decoded text."""
    likely: bool
    """Whether the right answer was the likeliest."""
    held: float
    """Share of the answers that stand in what was read."""
    tokens: int
    seconds: float


def _answer(way: _Way, tokenizer: Any, task: Prompts, prompt: Prompt, *, chunk: int) -> _Answer:
    extend(way.model, way.scaling)
    start = time.perf_counter()
    document = way.read(tokenizer, task, prompt)
    ids = [prompt.ids[0], *document, *prompt.question]
    read = read_prompt(way.model, ids, prompt, chunk=chunk)
    share = 0.0 if read.is_nan else decoded_share(tokenizer, read, prompt, family=task.family)
    seconds = time.perf_counter() - start
    likely = bool(prompt.wrong) and not read.is_nan and is_likeliest(read, prompt)
    held = answered(tokenizer.decode(document), prompt.answers)
    return _Answer(share, likely, held, len(ids), seconds)


def _row(way: _Way, task: Prompts, answers: Sequence[_Answer]) -> dict[str, Any]:
    count = len(answers)
    accuracy = sum(answer.share for answer in answers) / count
    low, high = share_interval(accuracy, count)
    compared = bool(task.prompts[0].wrong)
    return {
        "task": task.family,
        "way": way.name,
        "model": "finetuned" if way.name == "long" else "base",
        "length": task.length,
        "trials": count,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        # Of a task without distractors nothing is compared.
        "likelihood_accuracy": sum(answer.likely for answer in answers) / count if compared else "",
        "chance": sum(prompt.chance for prompt in task.prompts) / count if compared else "",
        "held": sum(answer.held for answer in answers) / count,
        "tokens": sum(answer.tokens for answer in answers) / count,
        "seconds": sum(answer.seconds for answer in answers) / count,
        "protocol": PROTOCOL,
    }
