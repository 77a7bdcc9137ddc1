"""Where text comes from: each choice of conf/corpus/ as shards that one reader reads."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import zstandard

from ropewalk.config import CorpusConfig, SourceConfig
from ropewalk.corpus.documents import Document
from ropewalk.corpus.fetch import Fetcher
from ropewalk.corpus.lines import is_remote
from ropewalk.corpus.redpajama import download_redpajama, download_sample, download_v2
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.stdlib import stdlib_hash, stdlib_rows
from ropewalk.files import writing

FETCHED = ("redpajama_v1", "redpajama_sample", "redpajama_v2")


def _matched(pattern: str, key: str) -> list[str]:
    """Local files or fsspec URLs that a glob names, in order."""
    if is_remote(pattern):
        try:
            filesystem, path = fsspec.url_to_fs(pattern)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{key} {pattern} cannot be opened: {error}") from None
        try:
            found = filesystem.glob(path) if "*" in path else [path] if filesystem.exists(path) else []
        except Exception as error:  # each library has its own for credentials and connections
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{key} {pattern} cannot be listed: {reason}") from None
        files = [str(filesystem.unstrip_protocol(name)) for name in sorted(found)]
    else:
        path = Path(pattern)
        root = Path(path.anchor or ".")
        files = [str(own) for own in sorted(root.glob(str(path.relative_to(path.anchor)))) if own.is_file()]
    if not files:
        raise FileNotFoundError(
            f"{key} {pattern} matches no file; give a glob of .jsonl, .jsonl.zst or .jsonl.gz files"
        )
    return files


def _text_files(path: str | None) -> list[Path]:
    files = sorted(Path(path or "").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"corpus.path {path} is not a folder with .txt files")
    return files


def _facts(path: str) -> str:
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        return f"{path}:{filesystem.size(name)}:{filesystem.ukey(name)}"
    about = Path(path).stat()
    return f"{path}:{about.st_size}:{about.st_mtime_ns}"


def _size(path: str) -> int:
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        return int(filesystem.size(name) or 0)
    return Path(path).stat().st_size


def fingerprint(config: CorpusConfig) -> str:
    """What the source looks like now: another value means other documents.

    The embedded corpus is the interpreter's: its version and the hash of its sources. Files count by
    name, size and time of change; what a listing names is taken as fixed.

    Raises:
        FileNotFoundError: no file where the configuration says.
    """
    found = _fingerprint(config)
    if config.evaluation_sets:
        facts = [_facts(path) for pattern in config.evaluation_sets for path in _matched(pattern, _EVALUATION)]
        found += f"; evaluation {hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"
    return found


_EVALUATION = "corpus.evaluation_sets"


def _fingerprint(config: SourceConfig) -> str:
    if isinstance(config, CorpusConfig) and config.name == "mixture":
        return "; ".join(f"{label}: {_fingerprint(source)}" for label, source in config.sources.items())
    if config.name == "stdlib":
        return f"python {sys.version.split()[0]} sources {stdlib_hash()}"
    if config.name in FETCHED:
        return f"listing {config.url}"
    files = _matched(config.path or "", "corpus.path") if config.name == "jsonl" else _text_files(config.path)
    facts = [_facts(str(path)) for path in files]
    return f"{len(files)} files {hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"


def check_fingerprint(config: CorpusConfig) -> None:
    """Raise ValueError when the source changed after the configuration was composed."""
    now = fingerprint(config)
    if config.fingerprint is not None and config.fingerprint != now:
        raise ValueError(
            f"the corpus changed since resolved.yaml was made (then: {config.fingerprint}; now: {now}); "
            "run `dvc repro --force --single-item compose`, then the same command again"
        )


def find_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    """The files of a source in order, fetched where they are not here.

    Args:
        folder: for files that are made on the way.
        downloads: for files that are fetched, kept for the next run.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the source names no such files.
        OSError: a file cannot be fetched.
    """
    if isinstance(config, CorpusConfig) and config.name == "mixture":
        return [
            replace(shard, label=label)
            for label, source in config.sources.items()
            for shard in find_shards(source, folder=folder, downloads=downloads)
        ]
    if config.name == "redpajama_v2":
        return _v2_shards(config, downloads)
    kind = "text" if config.name == "text" else "jsonl"
    return [
        Shard(str(path), kind, _size(str(path)), text_field=config.text_field, id_field=config.id_field)
        for path in _files(config, folder, downloads)
    ]


def _files(config: SourceConfig, folder: Path, downloads: Path) -> list[Path] | list[str]:
    if config.name == "text":
        return _text_files(config.path)
    if config.name == "stdlib":
        return [_write_stdlib(folder / "stdlib.jsonl.zst")]
    if config.name == "jsonl":
        return _matched(config.path or "", "corpus.path")
    assert config.url is not None
    folder = _folder_of(config.url, downloads / config.name)
    if config.name == "redpajama_sample":
        return download_sample(config.url, folder, subsets=config.subsets, fetcher=_fetcher(config))
    return download_redpajama(config.url, folder, subsets=config.subsets, fetcher=_fetcher(config))


def _v2_shards(config: SourceConfig, downloads: Path) -> list[Shard]:
    assert config.url is not None
    found = download_v2(
        config.url,
        _folder_of(config.url, downloads / config.name),
        languages=config.languages,
        snapshots=config.snapshots,
        buckets=config.buckets,
        files=config.files,
        signals=bool(config.quality),
        duplicates=config.drop_listed_duplicates,
        fetcher=_fetcher(config),
    )
    return [
        Shard(
            str(paths["documents"]),
            "redpajama_v2",
            paths["documents"].stat().st_size,
            tag=tag,
            signals=str(paths["signals"]) if "signals" in paths else None,
            duplicates=str(paths["duplicates"]) if "duplicates" in paths else None,
            quality=dict(config.quality),
        )
        for tag, paths in found
    ]


def _folder_of(url: str, folder: Path) -> Path:
    """One folder for each address, so that a mirror's files are never taken for another's."""
    return folder / hashlib.sha256(url.encode()).hexdigest()[:12]


def _fetcher(config: SourceConfig) -> Fetcher:
    cap = config.largest_download_mib
    return Fetcher(
        parallel=config.parallel_downloads,
        timeout=config.download_timeout,
        largest_bytes=None if cap is None else cap << 20,
    )


def evaluation_shards(config: CorpusConfig) -> list[Shard]:
    """Files of evaluation sets, JSON lines or .txt."""
    return [
        Shard(path, "text" if path.endswith(".txt") else "jsonl", text_field=config.evaluation_field)
        for pattern in config.evaluation_sets
        for path in _matched(pattern, _EVALUATION)
    ]


def read_corpus(config: CorpusConfig, *, folder: Path, rejected: Counter[str]) -> Iterator[Document]:
    """Every usable document of the source; each other row is counted by reason in ``rejected``.

    Args:
        folder: for files that are made or fetched on the way.

    Raises what `find_shards` does, and:
        ValueError: a file is cut off.
    """
    for shard in find_shards(config, folder=folder, downloads=folder):
        for _, found in shard.rows():
            if isinstance(found, Document):
                yield found
            else:
                rejected[found.reason] += 1


def _write_stdlib(path: Path) -> Path:
    rows = "".join(json.dumps(row) + "\n" for row in stdlib_rows())
    with writing(path) as aside:
        aside.write_bytes(zstandard.compress(rows.encode()))
    return path


def downloads_folder(config: CorpusConfig, work: Path) -> Path:
    return Path(config.downloads).expanduser() if config.downloads else work / "downloads"
