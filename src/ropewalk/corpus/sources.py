"""Where text comes from: the shards of each source of `ropewalk.corpus.registry`, and fingerprints of their files."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import fsspec
import zstandard

from ropewalk.config import CorpusConfig, SourceConfig
from ropewalk.corpus.fetch import Fetcher
from ropewalk.corpus.lines import is_remote
from ropewalk.corpus.redpajama import download_redpajama, download_sample, download_v2
from ropewalk.corpus.registry import SOURCES
from ropewalk.corpus.shards import JSON_LINES, REDPAJAMA_V2, TEXT, Shard
from ropewalk.corpus.stdlib import stdlib_hash, stdlib_rows
from ropewalk.files import writing
from ropewalk.registry import resolved


def fingerprint(config: CorpusConfig) -> str:
    """A string that changes when the documents of the corpus, or its evaluation sets, may have changed.

    The standard library counts by the version of Python and the hash of its sources, files count by name, size and
    time of change, and what lies at an address is taken not to change.

    Raises:
        FileNotFoundError: no file lies where the configuration says.
    """
    whole = _fingerprint(config)
    if config.evaluation_sets:
        paths = [path for pattern in config.evaluation_sets for path in _matching(pattern, _EVALUATION)]
        whole += f"; evaluation {_hash_of_files(paths)}"
    return whole


_EVALUATION = "corpus.evaluation_sets"


def _fingerprint(config: SourceConfig) -> str:
    if isinstance(config, CorpusConfig) and config.name == "mixture":
        return "; ".join(f"{label}: {_fingerprint(source)}" for label, source in config.sources.items())
    return cast(str, resolved(SOURCES[config.name].fingerprint)(config))


def check_fingerprint(config: CorpusConfig) -> None:
    """Raise ValueError when the source changed after the configuration was composed."""
    now = fingerprint(config)
    if config.fingerprint is not None and config.fingerprint != now:
        raise ValueError(
            f"the corpus changed since the configuration was made (then: {config.fingerprint}; now: {now}); run the "
            "same command again, under DVC after `dvc repro --force --single-item compose`"
        )


def find_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    """The files of a source in order, fetched where they are missing.

    Args:
        folder: where files that are made on the way are written.
        downloads: where files are fetched to and kept for the next run.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the source names no such files.
        OSError: a file cannot be fetched.
    """
    if isinstance(config, CorpusConfig) and config.name == "mixture":
        return [
            replace(shard, label=label)
            for label, source in config.sources.items()
            for shard in find_shards(source, folder=folder, downloads=downloads)
        ]
    shards = resolved(SOURCES[config.name].shards)
    return cast(list[Shard], shards(config, folder=folder, downloads=downloads))


def address_fingerprint(config: SourceConfig) -> str:
    """The address of a source that does not change; the default of `ropewalk.corpus.registry.Source`."""
    return f"listing {config.url}"


def stdlib_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    path = folder / "stdlib.jsonl.zst"
    rows = "".join(json.dumps(row) + "\n" for row in stdlib_rows())
    with writing(path) as aside:
        aside.write_bytes(zstandard.compress(rows.encode()))
    return _json_shards([path], config)


def stdlib_fingerprint(config: SourceConfig) -> str:
    return f"python {sys.version.split()[0]} sources {stdlib_hash()}"


def json_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    return _json_shards(_matching(config.path or "", "corpus.path"), config)


def json_fingerprint(config: SourceConfig) -> str:
    paths = _matching(config.path or "", "corpus.path")
    return f"{len(paths)} files {_hash_of_files(paths)}"


def text_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    return [Shard(str(path), TEXT, path.stat().st_size, name=name) for name, path in _text_files(config.path).items()]


def text_fingerprint(config: SourceConfig) -> str:
    paths = _text_files(config.path).values()
    return f"{len(paths)} files {_hash_of_files(map(str, paths))}"


def redpajama_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    url, target = _address(config, downloads)
    return _json_shards(download_redpajama(url, target, subsets=config.subsets, fetcher=_fetcher(config)), config)


def sample_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    url, target = _address(config, downloads)
    return _json_shards(download_sample(url, target, subsets=config.subsets, fetcher=_fetcher(config)), config)


def v2_shards(config: SourceConfig, *, folder: Path, downloads: Path) -> list[Shard]:
    url, target = _address(config, downloads)
    tags = download_v2(
        url,
        target,
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
            REDPAJAMA_V2,
            paths["documents"].stat().st_size,
            tag=tag,
            signals=str(paths["signals"]) if "signals" in paths else None,
            duplicates=str(paths["duplicates"]) if "duplicates" in paths else None,
            quality=dict(config.quality),
        )
        for tag, paths in tags
    ]


def _json_shards(paths: Sequence[Path | str], config: SourceConfig) -> list[Shard]:
    return [
        Shard(
            str(path),
            size=_size(str(path)),
            text_field=config.text_field,
            id_field=config.id_field,
            subset_field=config.subset_field,
        )
        for path in paths
    ]


def _matching(pattern: str, key: str) -> list[str]:
    """Local files or fsspec URLs that match a glob, in order."""
    if is_remote(pattern):
        try:
            filesystem, path = fsspec.url_to_fs(pattern)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{key} {pattern} cannot be opened: {error}") from None
        try:
            names = filesystem.glob(path) if "*" in path else [path] if filesystem.exists(path) else []
        except Exception as error:  # every library raises its own errors for credentials and connections
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{key} {pattern} cannot be listed: {reason}") from None
        files = [str(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    elif Path(pattern).expanduser().is_dir():
        files = [str(file) for file in _visible(Path(pattern).expanduser()) if file.name.endswith(_JSON_LINES)]
        if not files:
            raise FileNotFoundError(
                f"{key} {pattern} is a folder without {_named(_JSON_LINES)} files; {_found(pattern)}"
            )
    else:
        path = Path(pattern).expanduser()
        root = Path(path.anchor or ".")
        files = [str(file) for file in sorted(root.glob(str(path.relative_to(path.anchor)))) if file.is_file()]
    if not files:
        lacks = "matches no file" if set(pattern) & set("*?[") else "is not there"
        raise FileNotFoundError(
            f"{key} {pattern} {lacks}; give a folder, or a glob of .jsonl, .jsonl.zst or .jsonl.gz files"
        )
    return files


_JSON_LINES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz")


def _text_files(path: str | None) -> dict[str, Path]:
    """The .txt files in a folder and its subfolders, or the only file, by the path inside the folder, in order."""
    root = Path(path or "").expanduser()
    if root.is_file():
        return {root.name: root}
    if not root.is_dir():
        raise FileNotFoundError(f"corpus.path {path} is not there; give a folder of .txt files, or one of them")
    files = [file for file in _visible(root) if file.suffix.lower() == ".txt"]
    if not files:
        raise FileNotFoundError(f"corpus.path {path} is a folder without .txt files; {_found(path)}")
    return {file.relative_to(root).as_posix(): file for file in files}


def _visible(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders in order, without hidden ones."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _named(endings: Sequence[str]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _found(folder: str | None) -> str:
    """What a folder without the wanted files holds, and what to do."""
    files = _visible(Path(folder or "").expanduser())
    if not files:
        return "it is empty; check the path"
    return f"it holds {len(files)} others, such as {files[0].name}; give them such a name, or choose another corpus"


def _hash_of_files(paths: Iterable[str]) -> str:
    """Hash of the names, sizes and times of change of files; their content is not read."""
    facts = []
    for path in paths:
        if is_remote(path):
            filesystem, name = fsspec.url_to_fs(path)
            facts.append(f"{path}:{filesystem.size(name)}:{filesystem.ukey(name)}")
        else:
            status = Path(path).stat()
            facts.append(f"{path}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _size(path: str) -> int:
    if is_remote(path):
        filesystem, name = fsspec.url_to_fs(path)
        return int(filesystem.size(name) or 0)
    return Path(path).stat().st_size


def _address(config: SourceConfig, downloads: Path) -> tuple[str, Path]:
    """A source's address, and a folder for it alone, so that a mirror's files are never taken for another's."""
    assert config.url is not None
    return config.url, downloads / config.name / hashlib.sha256(config.url.encode()).hexdigest()[:12]


def _fetcher(config: SourceConfig) -> Fetcher:
    cap = config.max_download_mib
    return Fetcher(
        parallel=config.parallel_downloads,
        timeout=config.download_timeout,
        max_bytes=None if cap is None else cap << 20,
    )


def evaluation_shards(config: CorpusConfig) -> list[Shard]:
    """The files of the evaluation sets, JSON lines or .txt."""
    return [
        Shard(path, TEXT if path.endswith(".txt") else JSON_LINES, text_field=config.evaluation_field)
        for pattern in config.evaluation_sets
        for path in _matching(pattern, _EVALUATION)
    ]


def downloads_folder(config: CorpusConfig, work: Path) -> Path:
    """The folder that fetched files are kept in: ``corpus.downloads``, or ``downloads`` below the folder ``work``."""
    return Path(config.downloads).expanduser() if config.downloads else work / "downloads"
