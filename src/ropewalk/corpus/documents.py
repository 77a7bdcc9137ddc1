"""Documents: one row of JSON lines in, one named text out, nothing dropped without being counted.

Reads plain, ``.zst`` and ``.gz`` JSON lines with the row shapes of RedPajama-V1 (all seven subsets).
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard


@dataclass(frozen=True)
class Document:
    name: str
    """Unique and stable: a url, an arXiv id, a repository path, or a hash of the text."""
    subset: str
    """RedPajama's name of the source: arxiv, book, c4, common_crawl, github, stackexchange, wikipedia."""
    text: str
    group: str
    """Documents of one group always fall into the same split (the parts of one long text, say)."""


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zstd_lines(path)
    else:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as source:
            yield from source


def _zstd_lines(path: Path) -> Iterator[bytes]:
    """Lines of all frames of a file; EOFError where the last frame is cut off (zstandard's own readers end quietly)."""
    new_frame = zstandard.ZstdDecompressor().decompressobj
    frame, begun, pending = new_frame(), False, b""
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            while chunk:
                begun = True
                *lines, pending = (pending + frame.decompress(chunk)).split(b"\n")
                yield from (line + b"\n" for line in lines)
                chunk = frame.unused_data
                if frame.eof:
                    frame, begun = new_frame(), False
    if begun:
        raise EOFError("the compressed stream ends early")
    if pending:
        yield pending


def _identity(row: dict[str, Any], text: str) -> tuple[str, str, str]:
    """(name, subset, group) of a row, from the keys that its subset is known by."""
    found = row.get("meta")
    meta: dict[str, Any] = found if isinstance(found, dict) else {}
    if "arxiv_id" in meta:
        name, subset = f"arxiv:{meta['arxiv_id']}", "arxiv"
    elif "repo_name" in meta:
        name, subset = f"github:{meta['repo_name']}/{meta.get('path', '')}", "github"
    elif "short_book_title" in meta:
        name, subset = f"book:{meta['short_book_title']}", "book"
    elif meta.get("source") == "stdlib" and "name" in meta:
        return f"{meta['name']}#{meta.get('part', 0)}", "stdlib", str(meta["name"])
    elif meta.get("source") in ("c4", "stackexchange"):
        name, subset = str(meta.get("url", "")), meta["source"]
    elif "title" in meta and "url" in meta:
        name, subset = str(meta["url"] or meta["title"]), "wikipedia"
    elif "title" in meta:
        name, subset = f"book:{meta['title']}", "book"
    elif str(row.get("source", "")).startswith("cc/"):
        name, subset = row["source"], "common_crawl"
    else:
        name, subset = str(meta.get("url", "")), "other"
    name = name or hashlib.sha256(text.encode()).hexdigest()
    return name, subset, name


def read_documents(paths: Iterable[Path], *, rejected: Counter[str]) -> Iterator[Document]:
    """Yield every usable row of the files in order; count each other row by reason in ``rejected``.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is empty or ends in the middle of a row or of its compressed stream.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"corpus file {path} is not there; check corpus.path")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty; fetch the file again")
        line, row_number = b"\n", 0
        try:
            for row_number, line in enumerate(_lines(path), start=1):  # noqa: B007 (used after the loop)
                document = _parse(line, rejected)
                if document is not None:
                    yield document
        except (EOFError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} cannot be decompressed after row {row_number} ({error}); fetch the file again"
            ) from None
        if not line.endswith(b"\n") and not _is_json(line):
            raise ValueError(f"{path} is cut off in row {row_number}; fetch the file again")


def _parse(line: bytes, rejected: Counter[str]) -> Document | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        rejected["not UTF-8"] += 1
        return None
    except (ValueError, RecursionError):
        rejected["malformed JSON"] += 1
        return None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        rejected["no text"] += 1
        return None
    if not text.strip():
        rejected["empty text"] += 1
        return None
    if not _is_unicode(text):
        rejected["text with lone surrogates"] += 1
        return None
    name, subset, group = _identity(row, text)
    return Document(name=name, subset=subset, text=text, group=group)


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
