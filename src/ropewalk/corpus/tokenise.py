"""Tokenising of parts: documents in batches on all cores, long documents in windows that are joined where they agree.

`tokenizers` uses some hundred bytes for every token that it returns, so the size of what is tokenised at once is
bounded. Windows overlap; they are joined inside the overlap where both have the same run of tokens, so that the tokens
are those of the whole text even if the tokenizer does not split text into words first (Llama's).

``encode_batch_fast`` omits the offsets, which only windows need, and is 1.1 to 1.3 times as fast as ``encode_batch``
(`benchmarks/corpus`). datatrove's DocumentTokenizer calls ``encode_batch`` on batches of 10,000 documents.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ropewalk.corpus.parts import Part, Report
from ropewalk.corpus.split import SPLITS, Split
from ropewalk.files import read_json, write_json, writing

LONG_CHARACTERS = 1 << 20
"""Number of characters above which a document is tokenised in windows."""
WINDOW_CHARACTERS = 1 << 18
"""Number of characters in a window. With offsets, a window of code takes about a hundred MiB."""
OVERLAP_CHARACTERS = 1 << 13
"""Number of characters that two windows share."""
_AGREE = 16
"""Number of consecutive tokens that two windows must have in common where they are joined."""
_BATCH_CHARACTERS = 2_000_000
Ids = NDArray[np.uint32]
Encode = Callable[[list[str]], list[Ids]]
"""A function from texts of bounded length to the tokens of each."""


@dataclass(frozen=True)
class TokenTask:
    """One part to be tokenised by one worker."""

    part: str
    """Folder of the part."""
    folder: str
    """Folder in which a folder for the tokens of the part is made."""
    tokenizer: str
    """File with the tokenizer as `tokenizers` saves it."""
    dtype: str
    """Type of a token in the token store."""
    min_tokens: int
    min_tokens_by_subset: dict[str, int]
    split_special_tokens: bool = False
    """Whether special tokens that occur in a text are tokenised as text."""
    dropped: str | None = None
    """File with the verdict of `ropewalk.corpus.duplicates` on each document of the part."""

    @property
    def target(self) -> Path:
        """Folder for the tokens of the part."""
        return Path(self.folder) / Path(self.part).name


def tokenise_part(task: TokenTask, report: Report, encode: Encode | None = None) -> None:
    """Write the tokens of a part as ``<split>.bin``, ``kept.npy`` and ``lengths.npy``, and report its counts.

    Args:
        encode: replaces the tokenizer in ``task.tokenizer``.
    """
    mark = task.target / "part.json"
    if mark.is_file():
        report(read_json(mark))
        return
    tokenizer = None
    if encode is None:
        tokenizer = load_tokenizer(task.tokenizer, split_special_tokens=task.split_special_tokens)
        encode = encoder(tokenizer)
    part = Part(Path(task.part), read_json(Path(task.part) / "part.json"))
    splits, subsets = part.array("splits"), [subset for _, subset in part.documents()]
    wanted = np.ones(len(part), bool)
    if task.dropped:
        wanted = np.load(task.dropped) == 0
    kept, lengths, short = [], [], 0
    tokens = dict.fromkeys(SPLITS, 0)
    with writing(task.target) as aside:
        aside.mkdir()
        outs = [(aside / f"{split}.bin").open("wb") for split in SPLITS]
        try:
            for number, pieces in _tokens(part, wanted, encode, tokenizer):
                out, length = outs[splits[number]], 0
                start = out.tell()
                for piece in pieces:
                    out.write(piece.astype(task.dtype).tobytes())
                    length += len(piece)
                if length < task.min_tokens_by_subset.get(subsets[number], task.min_tokens):
                    short += 1
                    out.seek(start)
                    out.truncate()
                    continue
                kept.append(number)
                lengths.append(length)
                tokens[SPLITS[splits[number]]] += length
        finally:
            for out in outs:
                out.close()
        np.save(aside / "kept.npy", np.asarray(kept, np.int64))
        np.save(aside / "lengths.npy", np.asarray(lengths, np.int64))
        about = {"tokens": tokens, "documents": len(kept), "too short": short, "text_bytes": part.about["text_bytes"]}
        write_json(aside / "part.json", about)
    # The text is not needed any more.
    (Path(task.part) / "text.bin").unlink(missing_ok=True)
    report(about)


def stored(part: Part, tokens: Path, split: Split) -> Iterator[tuple[str, str, int]]:
    """Yield (name, subset, number of tokens) for the tokenised documents of one split of a part, in order.

    Args:
        tokens: folder that `tokenise_part` wrote.
    """
    documents, splits, wanted = part.documents(), part.array("splits"), SPLITS.index(split)
    kept, lengths = np.load(tokens / "kept.npy"), np.load(tokens / "lengths.npy")
    for number, length in zip(kept.tolist(), lengths.tolist(), strict=True):
        if splits[number] == wanted:
            yield *documents[number], length


def load_tokenizer(path: str | Path, *, split_special_tokens: bool) -> Tokenizer:
    """The tokenizer in a file that `tokenizers` saved."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = split_special_tokens
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Encode:
    """A function that encodes texts with a tokenizer, without special tokens."""
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> list[Ids]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]

    return encode


def _tokens(
    part: Part, wanted: NDArray[np.bool_], encode: Encode, tokenizer: Tokenizer | None
) -> Iterator[tuple[int, Iterable[Ids]]]:
    """Yield (number, tokens in pieces) for every wanted document of a part, in order."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    ends = part.array("ends")
    starts = np.concatenate([[0], ends[:-1]])
    with (part.path / "text.bin").open("rb") as source:
        for number in np.flatnonzero(wanted).tolist():
            start, end = int(starts[number]), int(ends[number])
            source.seek(start)
            # A character has at most four bytes.
            long = end - start > 4 * LONG_CHARACTERS
            text = "" if long else source.read(end - start).decode()
            if tokenizer is not None and (long or len(text) > LONG_CHARACTERS):
                yield from zip(numbers, ([ids] for ids in encode(texts)), strict=True)
                numbers, texts, size = [], [], 0
                source.seek(start)
                yield number, windowed(_decoded(source, end - start), tokenizer)
                continue
            if long:
                text = source.read(end - start).decode()
            numbers.append(number)
            texts.append(text)
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield from zip(numbers, ([ids] for ids in encode(texts)), strict=True)
                numbers, texts, size = [], [], 0
    if texts:
        yield from zip(numbers, ([ids] for ids in encode(texts)), strict=True)


def _decoded(source: Any, size: int) -> Iterator[str]:
    """Yield the text in the next ``size`` bytes of ``source``, about a window at a time."""
    rest = b""
    while size:
        data = rest + source.read(min(size, WINDOW_CHARACTERS))
        size -= min(size, WINDOW_CHARACTERS)
        cut = len(data)
        # Cut before the last character if more bytes of it may follow.
        while size and cut and data[cut - 1] & 0xC0 == 0x80:
            cut -= 1
        cut -= 1 if size and cut and data[cut - 1] >= 0xC0 else 0
        yield data[:cut].decode()
        rest = data[cut:]


def windowed(
    pieces: Iterator[str],
    tokenizer: Tokenizer,
    *,
    window: int = WINDOW_CHARACTERS,
    overlap: int = OVERLAP_CHARACTERS,
) -> Iterator[Ids]:
    """Yield the tokens of a long text, a window at a time.

    Args:
        window: number of characters in a window.
        overlap: number of characters that two windows share.

    Raises:
        ValueError: two windows do not agree anywhere in their overlap.
    """
    text, ended = "", False
    previous: tuple[Ids, NDArray[np.int64]] | None = None
    while not ended or text:
        while not ended and len(text) <= window:
            piece = next(pieces, None)
            ended = piece is None
            text += piece or ""
        head = text[:window]
        last = ended and len(text) <= window
        encoding = tokenizer.encode(head, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.uint32)
        starts = np.asarray([start for start, _ in encoding.offsets], np.int64)
        if previous is not None:
            old_ids, old_starts = previous
            old, new = _join(old_ids, old_starts, ids, starts, overlap)
            yield old_ids[:old]
            ids, starts = ids[new:], starts[new:]
        if last:
            yield ids
            return
        # The tokens that the next window begins with are kept, with places counted from its start.
        step = len(head) - overlap
        keep = int(np.searchsorted(starts, step))
        yield ids[:keep]
        previous = ids[keep:], starts[keep:] - step
        text = text[step:]


def _join(
    old_ids: Ids, old_starts: NDArray[np.int64], ids: Ids, starts: NDArray[np.int64], overlap: int
) -> tuple[int, int]:
    """Indices, in the older and in the newer window, of the token from which the newer window's tokens are used."""
    common, old_places, places = np.intersect1d(old_starts, starts, return_indices=True)
    for place, old, new in zip(common, old_places, places, strict=True):
        if place < overlap // 4:
            continue
        old_run, new_run = old_ids[old : old + _AGREE], ids[new : new + _AGREE]
        if len(old_run) == _AGREE and (old_run == new_run).all():
            return int(old), int(new)
    raise ValueError("a long document cannot be tokenised in windows: two of them do not agree; leave it out")
