"""The text that is read: the beginning of a file, or the modules of Python's standard library, one after another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropewalk.corpus.stdlib import stdlib_modules

_CHARACTERS = 8
"""Characters of text that are tokenised at first for every token that is needed."""


def text_ids(tokenizer: Any, *, length: int, path: str | None = None) -> list[int]:
    """BOS, or EOS where the tokenizer has none, and the first ``length - 1`` tokens of the text; fewer where it ends.

    Args:
        path: a text file in UTF-8; by default the standard library.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not UTF-8, holds no two tokens, or the tokenizer has neither BOS nor EOS.
    """
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token; set one and save it again")
    characters = _CHARACTERS * length
    while True:
        text, is_whole = _beginning(path, characters)
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length - 1 or is_whole:
            break
        characters *= 2
    if not ids:
        raise ValueError(f"doctor.text {path} holds no text")
    return [first, *ids[: length - 1]]


def _beginning(path: str | None, characters: int) -> tuple[str, bool]:
    """The first ``characters`` of the text, and whether that is all of it."""
    pieces, size = [], 0
    for piece in _pieces(path):
        pieces.append(piece)
        size += len(piece)
        if size >= characters:
            return "".join(pieces)[:characters], False
    return "".join(pieces), True


def _pieces(path: str | None) -> Iterator[str]:
    if path is None:
        for modules in stdlib_modules().values():
            for module in modules:
                yield module.read_text(encoding="utf-8", errors="replace")
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"doctor.text {path} is not a file; give a .txt file")
    try:
        with Path(path).open(encoding="utf-8") as file:
            while piece := file.read(1 << 20):
                yield piece
    except UnicodeDecodeError as error:
        raise ValueError(f"doctor.text {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
