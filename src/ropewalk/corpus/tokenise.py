"""Tokens of a part: documents in batches on all cores, a long one in windows that are joined where they agree.

`tokenizers` keeps some hundred bytes for every token it returns, so neither a document nor a batch is tokenised
at once beyond a bound. Windows overlap; they are joined at a place in the middle of the overlap where both begin a
token and go on alike, so the tokens are those of the whole text also where a tokenizer knows no words (Llama's).

``encode_batch_fast`` leaves out the offsets, which only windows need: it is 1.1 to 1.3 times as fast as
``encode_batch`` (`benchmarks/corpus`). datatrove's DocumentTokenizer calls ``encode_batch`` on a batch of 10,000
documents, however long they are.
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
"""Above these a document is tokenised in windows."""
WINDOW_CHARACTERS = 1 << 18
"""With offsets, a window of code takes about a hundred MiB."""
OVERLAP_CHARACTERS = 1 << 13
_AGREE = 16
"""Tokens in a row that two windows must have in common where they are joined."""
_BATCH_CHARACTERS = 2_000_000
Ids = NDArray[np.uint32]
Encode = Callable[[list[str]], list[Ids]]
"""Texts of bounded length to the tokens of each."""


@dataclass(frozen=True)
class TokenTask:
    part: str
    folder: str
    """That the tokens' part is written to."""
    tokenizer: str
    """File with the tokenizer as `tokenizers` saves it."""
    dtype: str
    least_tokens: int
    least_tokens_by_subset: dict[str, int]
    split_special_tokens: bool = False
    """Whether special tokens that a text spells are read as text."""
    dropped: str | None = None
    """File with the verdict on every document of the part (`ropewalk.corpus.duplicates`)."""

    @property
    def target(self) -> Path:
        return Path(self.folder) / Path(self.part).name


def tokenise_part(task: TokenTask, report: Report, encode: Encode | None = None) -> None:
    """Write ``<split>.bin`` of every split, ``kept.npy`` and ``lengths.npy`` of a part, and report its counts."""
    mark = task.target / "part.json"
    if mark.is_file():
        report(read_json(mark))
        return
    tokenizer = Tokenizer.from_file(task.tokenizer) if Path(task.tokenizer).is_file() else None
    if encode is None:
        assert tokenizer is not None
        tokenizer.encode_special_tokens = task.split_special_tokens
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
                if length < task.least_tokens_by_subset.get(subsets[number], task.least_tokens):
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
    # The text is not needed again.
    (Path(task.part) / "text.bin").unlink(missing_ok=True)
    report(about)


def stored(part: Part, tokens: Path, split: Split) -> Iterator[tuple[str, str, int]]:
    """(name, subset, length in tokens) of a part's documents of one split that were tokenised, in order.

    Args:
        tokens: the folder that `tokenise_part` wrote.
    """
    documents, splits, own = part.documents(), part.array("splits"), SPLITS.index(split)
    kept, lengths = np.load(tokens / "kept.npy"), np.load(tokens / "lengths.npy")
    for number, length in zip(kept.tolist(), lengths.tolist(), strict=True):
        if splits[number] == own:
            yield *documents[number], length


def encoder(tokenizer: Tokenizer) -> Encode:
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> list[Ids]:
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(one.ids, np.uint32) for one in found]

    return encode


def _tokens(
    part: Part, wanted: NDArray[np.bool_], encode: Encode, tokenizer: Tokenizer | None
) -> Iterator[tuple[int, Iterable[Ids]]]:
    """(number, tokens in pieces) of every wanted document of a part, in order."""
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
    """Text of ``size`` bytes from where ``source`` stands, about a window at a time."""
    rest = b""
    while size:
        data = rest + source.read(min(size, WINDOW_CHARACTERS))
        size -= min(size, WINDOW_CHARACTERS)
        cut = len(data)
        # Back to the first byte of the last character, if more of it may follow.
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
    """The tokens of a long text, a window at a time.

    Raises:
        ValueError: two windows do not agree anywhere in their overlap.
    """
    text, ended = "", False
    before: tuple[Ids, NDArray[np.int64]] | None = None
    while not ended or text:
        while not ended and len(text) <= window:
            piece = next(pieces, None)
            ended = piece is None
            text += piece or ""
        own = text[:window]
        last = ended and len(text) <= window
        encoding = tokenizer.encode(own, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.uint32)
        starts = np.asarray([start for start, _ in encoding.offsets], np.int64)
        if before is not None:
            old_ids, old_starts = before
            old, new = _join(old_ids, old_starts, ids, starts, overlap)
            yield old_ids[:old]
            ids, starts = ids[new:], starts[new:]
        if last:
            yield ids
            return
        # What the next window begins with is kept, with places counted from its start.
        step = len(own) - overlap
        keep = int(np.searchsorted(starts, step))
        yield ids[:keep]
        before = ids[keep:], starts[keep:] - step
        text = text[step:]


def _join(
    old_ids: Ids, old_starts: NDArray[np.int64], ids: Ids, starts: NDArray[np.int64], overlap: int
) -> tuple[int, int]:
    """Numbers of the tokens, in the older and in the newer window, from which the newer one's count."""
    common, old_places, places = np.intersect1d(old_starts, starts, return_indices=True)
    for place, old, new in zip(common, old_places, places, strict=True):
        if place < overlap // 4:
            continue
        one, other = old_ids[old : old + _AGREE], ids[new : new + _AGREE]
        if len(one) == _AGREE and (one == other).all():
            return int(old), int(new)
    raise ValueError("a long document cannot be tokenised in windows: two of them do not agree; leave it out")
