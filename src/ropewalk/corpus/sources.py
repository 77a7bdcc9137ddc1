"""Where text comes from: each choice of conf/corpus/ as an iterator of documents through one reader."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import zstandard

from ropewalk.config import CorpusConfig
from ropewalk.corpus.documents import Document, read_documents
from ropewalk.corpus.redpajama import download_redpajama
from ropewalk.corpus.stdlib import stdlib_hash, stdlib_rows
from ropewalk.files import writing


def _jsonl_files(config: CorpusConfig) -> list[Path]:
    pattern = Path(config.path or "")
    root = Path(pattern.anchor or ".")
    files = sorted(path for path in root.glob(str(pattern.relative_to(pattern.anchor))) if path.is_file())
    if not files:
        raise FileNotFoundError(
            f"corpus.path {config.path} matches no file; give a glob of .jsonl, .jsonl.zst or .jsonl.gz files"
        )
    return files


def _text_files(config: CorpusConfig) -> list[Path]:
    files = sorted(Path(config.path or "").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"corpus.path {config.path} is not a folder with .txt files")
    return files


def fingerprint(config: CorpusConfig) -> str:
    """What the source looks like now: another value means other documents.

    The embedded corpus is the interpreter's: its version and the hash of its sources. Files count by
    name, size and time of change; what a listing names is taken as fixed.

    Raises:
        FileNotFoundError: no file where the configuration says.
    """
    if config.name == "stdlib":
        return f"python {sys.version.split()[0]} sources {stdlib_hash()}"
    if config.name == "redpajama_v1":
        return f"listing {config.url}"
    files = _jsonl_files(config) if config.name == "jsonl" else _text_files(config)
    facts = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return f"{len(files)} files {hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"


def check_fingerprint(config: CorpusConfig) -> None:
    """Raise ValueError when the source changed after the configuration was composed."""
    now = fingerprint(config)
    if config.fingerprint is not None and config.fingerprint != now:
        raise ValueError(
            f"the corpus changed since resolved.yaml was made (then: {config.fingerprint}; now: {now}); "
            "run `dvc repro --force --single-item compose`, then the same command again"
        )


def read_corpus(config: CorpusConfig, *, folder: Path, rejected: Counter[str]) -> Iterator[Document]:
    """Every usable document of the source; each other row is counted by reason in ``rejected``.

    Args:
        folder: for files that are made or fetched on the way.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is cut off or cannot be fetched.
    """
    if config.name == "text":
        for path in _text_files(config):
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield Document(name=path.name, subset="text", text=text, group=path.name)
            else:
                rejected["empty text"] += 1
        return
    if config.name == "stdlib":
        files = [_write_stdlib(folder / "stdlib.jsonl.zst")]
    elif config.name == "redpajama_v1":
        assert config.url is not None
        files = download_redpajama(config.url, folder / "redpajama_v1", subsets=config.subsets)
    else:
        files = _jsonl_files(config)
    yield from read_documents(files, rejected=rejected)


def _write_stdlib(path: Path) -> Path:
    rows = "".join(json.dumps(row) + "\n" for row in stdlib_rows())
    with writing(path) as aside:
        aside.write_bytes(zstandard.compress(rows.encode()))
    return path
