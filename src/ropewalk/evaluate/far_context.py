"""What the text beyond the original window adds: the loss of tokens read with all of it, and in windows without it.

Perplexity is nearly all local, and does not tell whether a model uses what stands far back. LongPPL (arXiv 2410.23771)
therefore averages over key tokens alone, those that the far text makes much likelier. In addition, this module measures
at each length whether the tokens of the second half profit from all the text before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ropewalk.evaluate.cache import NO_CACHE, Cache, scaling_key, tensor_hash
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.perplexity import DocumentSet, DocumentSets, sliding_token_losses, whole_token_losses
from ropewalk.evaluate.uncertainty import mean_interval
from ropewalk.rope import RopeScaling

KEY_GAIN, KEY_LOSS = 2.0, 2.0
"""LongPPL's alpha and -beta, in nats: with the far text, a key token's loss falls by more than the first and to less
than the second (arXiv 2410.23771, section 3.2)."""
_KEY_PROTOCOL = f"key tokens: loss lower by {KEY_GAIN} nats with the far text, and below {KEY_LOSS}"
PROTOCOL = (
    "loss of the tokens in the second half of the first N tokens, read in windows of the original length that slide by "
    "half of it, less their loss read in one pass over all N; mean over documents, interval 95 % by bootstrap"
)


@dataclass(frozen=True)
class Reader:
    """A model that reads whole documents under one scaling, and windows of them under another."""

    model: str
    whole: RopeScaling
    windowed: RopeScaling


def key_tokens(windowed: Tensor, whole: Tensor) -> Tensor:
    """Which tokens are key tokens, as LongPPL defines them, of the same shape.

    Args:
        windowed: losses in nats, read in windows of the original length.
        whole: losses of the same tokens, read with all the text before them.
    """
    return (windowed - whole > KEY_GAIN) & (whole < KEY_LOSS)


def with_key_tokens(
    sets: DocumentSets, extension: Extension, models: Mapping[str, Any], *, cache: Cache = NO_CACHE
) -> DocumentSets:
    """The sets of documents with the key tokens that `Extension.judge` finds in them, the same for every method."""
    mark = partial(_marked, extension=extension, models=models, cache=cache)
    present = [documents for documents in sets if documents is not None]
    short, *long = cache.shared_out(present, mark, desc="key tokens", unit="set")
    return short, long[0] if long else None


def _marked(documents: DocumentSet, *, extension: Extension, models: Mapping[str, Any], cache: Cache) -> DocumentSet:
    length = documents.rows.shape[1]
    if length <= extension.window:
        return documents
    reader = Reader(*extension.judge(length))
    about = _about(_KEY_PROTOCOL, reader, documents, extension.window)

    def marked_places() -> list[list[int]]:
        windowed, whole = _losses(models, reader, documents, extension, length)
        return [row.nonzero().flatten().tolist() for row in key_tokens(windowed, whole)]

    marks = torch.zeros((documents.documents, length - 1), dtype=torch.bool)
    for row, places in zip(marks, cache.get_or_measure(reader.model, about, marked_places), strict=True):
        row[places] = True
    return replace(documents, key_tokens=marks)


def far_context_rows(
    sets: DocumentSets, extension: Extension, models: Mapping[str, Any], *, cache: Cache = NO_CACHE
) -> list[dict[str, Any]]:
    """A row per length beyond the window: what the extended model gains from the far text under our factors."""
    if "longrope" not in extension.methods:
        return []
    lengths = [length for length in extension.config.lengths if length > extension.window]
    target = extension.first.target_length
    short, long = sets
    sets_of = {length: documents for length in lengths if (documents := short if length <= target else long)}

    def row(length: int) -> dict[str, Any]:
        return _row(sets_of[length], extension, models, length, cache=cache)

    return cache.shared_out([*sets_of], row, desc="far context", unit="length")


def _row(
    documents: DocumentSet, extension: Extension, models: Mapping[str, Any], length: int, *, cache: Cache
) -> dict[str, Any]:
    documents = replace(documents, rows=documents.rows[:, :length])
    switch, window = extension.switch, extension.window
    windowed = switch.for_length(window) if extension.is_trained else extension.plain
    reader = Reader(extension.extended, switch.for_length(length), windowed)

    def gains() -> list[float]:
        windowed, whole = _losses(models, reader, documents, extension, length)
        return (windowed - whole)[:, length // 2 :].mean(1).tolist()

    document_gains = cache.get_or_measure(reader.model, _about(PROTOCOL, reader, documents, window), gains)
    low, high = mean_interval(document_gains) or ("", "")
    return {
        "model": reader.model,
        "method": "ours",
        "length": length,
        "document_set": documents.name,
        "gain_nats": sum(document_gains) / len(document_gains),
        "low": low,
        "high": high,
        "documents": len(document_gains),
        "protocol": PROTOCOL,
    }


def _losses(
    models: Mapping[str, Any], reader: Reader, documents: DocumentSet, extension: Extension, length: int
) -> tuple[Tensor, Tensor]:
    """Losses read in windows and as a whole, each of shape (documents, length - 1)."""
    model, window, chunk = models[reader.model], extension.window, extension.config.chunk_tokens
    stride = max(window // 2, 1)
    windowed = sliding_token_losses(model, reader.windowed, documents, window, stride=stride, chunk=chunk)
    return windowed, whole_token_losses(model, reader.whole, documents, length, chunk=chunk)


def _about(task: str, reader: Reader, documents: DocumentSet, window: int) -> dict[str, Any]:
    return {
        "task": task,
        "window": window,
        "scaling": [scaling_key(reader.windowed), scaling_key(reader.whole)],
        "documents": tensor_hash(documents.rows),
    }
