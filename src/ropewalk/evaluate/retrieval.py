"""Retrieval or long context: the same prompts answered from the whole document in the extended window, and by the base
model from what BM25 finds of the document within its original window.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.prompt_sets import PromptSets, retrieval_draws
from ropewalk.evaluate.prompts import Prompt, Prompts
from ropewalk.evaluate.recall import answered, decoded_share, is_likeliest, read_prompt
from ropewalk.evaluate.uncertainty import share_interval
from ropewalk.progress import Progress
from ropewalk.rope import LengthSwitch, RopeScaling, extend

PROTOCOL = (
    "greedy decoding, the passkey exactly, else the share of the answers in the decoded text; interval 95 % by Wilson; "
    "log probability of the right answer above all distractors'; seconds of one prompt alone: finding, reading and "
    "decoding"
)


def retrieve(tokenizer: Any, prompt: Prompt, *, room: int, chunk_tokens: int) -> list[int]:
    """Token ids of the document's best chunks by BM25, at most ``room``, in the document's order.

    Chunks overlap by half, so a passage of up to half a chunk is whole in one of them.

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
    ranked, _ = index.retrieve(query, k=len(chunks), show_progress=False)
    taken: set[int] = set()
    for chunk in (chunks[int(number)] for number in ranked[0]):
        new = [place for place in chunk if place not in taken]
        if len(taken) + len(new) > room:
            break
        taken.update(new)
    return [document[place] for place in sorted(taken)]


def compare(
    models: Mapping[str, Any],
    tokenizer: Any,
    tasks: Iterable[Prompts],
    switch: LengthSwitch,
    plain: RopeScaling,
    *,
    chunk_tokens: int,
    chunk: int,
    extended: str = "finetuned",
) -> list[dict[str, Any]]:
    """A row per task and way of reading: both scores, tokens read and seconds of a prompt.

    Args:
        models: of ``base``, which reads chunks under ``plain`` in that scaling's original window, and of ``extended``.
        extended: name of the model that reads whole documents under ``switch``.
        chunk_tokens: tokens in a retrieved chunk.
        chunk: prompt tokens in a forward pass, at most.

    Raises:
        ValueError: the window has no room for a chunk, or bm25s is not installed.
    """
    rows = []
    for task in tasks:
        whole = _Way("long", extended, switch.for_length(task.length))
        for way in (whole, _Way("retrieved", "base", plain, chunk_tokens)):
            answers = [_answer(way, models[way.model], tokenizer, task, prompt, chunk=chunk) for prompt in task.prompts]
            rows.append(_row(way, task, answers))
    return rows


def retrieval_rows(
    extension: Extension, models: Mapping[str, Any], prompts: PromptSets, *, seed: int
) -> list[dict[str, Any]]:
    """Rows of `compare` under the extension's scalings; none without lengths or without the searched factors."""
    if "longrope" not in extension.methods:
        return []
    config = extension.config
    with Progress(list(retrieval_draws(config, seed=seed)), desc="retrieval", unit="task") as bar:
        return compare(
            models,
            prompts.tokenizer,
            map(prompts.of, bar),
            extension.switch,
            extension.plain,
            chunk_tokens=config.retrieval.chunk_tokens,
            chunk=config.chunk_tokens,
            extended=extension.extended,
        )


@dataclass(frozen=True)
class _Way:
    """A model that reads whole documents, or chunks of them, under a scaling."""

    name: str
    model: str
    """Its name among the models."""
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


def _answer(way: _Way, model: Any, tokenizer: Any, task: Prompts, prompt: Prompt, *, chunk: int) -> dict[str, float]:
    """Scores and cost of one prompt, by their columns."""
    extend(model, way.scaling)
    start = time.perf_counter()
    document = way.read(tokenizer, task, prompt)
    ids = [prompt.ids[0], *document, *prompt.question]
    read = read_prompt(model, ids, prompt, chunk=chunk)
    share = 0.0 if read.is_nan else decoded_share(tokenizer, read, prompt, family=task.family)
    seconds = time.perf_counter() - start
    return {
        "accuracy": share,
        "likelihood_accuracy": not read.is_nan and is_likeliest(read, prompt),
        "chance": prompt.chance,
        # The share of the answers that stand in what was read.
        "held": answered(tokenizer.decode(document), prompt.answers),
        "tokens": len(ids),
        "seconds": seconds,
    }


def _row(way: _Way, task: Prompts, answers: Sequence[dict[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {key: sum(answer[key] for answer in answers) / len(answers) for key in answers[0]}
    accuracy = means.pop("accuracy")
    low, high = share_interval(accuracy, len(answers))
    return {
        "task": task.family,
        "way": way.name,
        "model": way.model,
        "length": task.length,
        "trials": len(answers),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        **means,
        "protocol": PROTOCOL,
    }
