"""Fetching RedPajama-V1: the files that its listing ``urls.txt`` names, over HTTP, resumable and whole or absent."""

import errno
import fcntl
import http.client
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from ropewalk.progress import Progress

TIMEOUT_SECONDS = 60
_VERSION = "v1.0.0"
_CHUNK_BYTES = 1 << 20
_WITHDRAWN = "book"
_PART_SUFFIX = ".part"


def download_redpajama(listing_url: str, folder: Path, *, subsets: Sequence[str]) -> list[Path]:
    """Fetch the listed files of ``subsets`` to ``folder/<subset>/<name>`` and return their paths in listing order.

    A file that is there is whole and not fetched again; a part left by an earlier call is gone on from.
    The withdrawn book subset is passed over with a warning where the server refuses it.

    Args:
        listing_url: ``urls.txt`` as an http(s) URL or a local path; relative lines are resolved against the URL.
        subsets: path components after ``v1.0.0/`` (arxiv, c4, common_crawl, ...); all where empty.

    Raises:
        ValueError: the listing does not name files of RedPajama-V1 or of the subsets.
        OSError: a file cannot be fetched or written; names the URL or folder.
    """
    found = _listed(listing_url, folder)
    known = sorted({subset for _, subset, _ in found})
    if unknown := sorted(set(subsets) - set(known)):
        raise ValueError(f"{listing_url} lists no subset {', '.join(unknown)}; it has {', '.join(known)}")
    paths = []
    for url, subset, target in found:
        if subsets and subset not in subsets:
            continue
        try:
            _fetch(url, target)
        except urllib.error.HTTPError as error:
            if subset != _WITHDRAWN or error.code not in (403, 404):
                raise OSError(f"{url} cannot be fetched: HTTP {error.code} {error.reason}") from None
            warnings.warn(f"{url} is no longer published (HTTP {error.code}); passed over", stacklevel=2)
            continue
        except OSError as error:
            if error.errno == errno.ENOSPC:
                message = f"no space left on the disk of {target.parent}; free some and run the same command again"
                raise OSError(message) from None
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise OSError(f"{url} cannot be fetched: {reason}; run the same command again to go on") from None
        except http.client.HTTPException as error:
            raise OSError(f"{url} cannot be fetched: {error!r}; run the same command again to go on") from None
        paths.append(target)
    return paths


def _listed(listing_url: str, folder: Path) -> list[tuple[str, str, Path]]:
    """(url, subset, target) of every file of the listing, once each."""
    base = ""
    if urlsplit(listing_url).scheme in ("http", "https"):
        base = listing_url
        try:
            with urllib.request.urlopen(listing_url, timeout=TIMEOUT_SECONDS) as answer:
                data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"the listing {listing_url} cannot be fetched: {error}") from None
    else:
        data = Path(listing_url).read_bytes()
    lines = [line.strip() for line in data.decode("utf-8", errors="replace").splitlines()]
    found: dict[Path, tuple[str, str, Path]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            url = urljoin(base, line)
            subset, target = _place(url, folder, listing_url)
            found.setdefault(target, (url, subset, target))
    if not found:
        raise ValueError(f"the listing {listing_url} names no files")
    return list(found.values())


def _place(url: str, folder: Path, listing_url: str) -> tuple[str, Path]:
    """Subset and target of a listed URL; names from outside must not lead out of ``folder``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{listing_url} lists {url}, which is not an http(s) URL")
    names = [unquote(name) for name in parts.path.split("/")]
    names = names[names.index(_VERSION) + 1 :] if _VERSION in names else []
    # A leading dot covers "." and ".." as well as our own parts; separators can come out of percent escapes.
    unsafe = any(not name or name.startswith(".") or set(name) & set("/\\\0") for name in names)
    target = folder.joinpath(*names) if not unsafe else folder
    if len(names) < 2 or unsafe or not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{listing_url} lists {url}, which is not of the form .../{_VERSION}/<subset>/<name>")
    return names[0], target


def _fetch(url: str, target: Path) -> None:
    """Download to a part beside ``target``, then rename it; a second process waits for the first."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}{_PART_SUFFIX}")
    with part.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if target.is_file():
            part.unlink(missing_ok=True)
            return
        try:
            _complete(url, out, target.name)
        except urllib.error.HTTPError:
            if not out.tell():
                part.unlink()
            raise
        part.replace(target)


def _complete(url: str, out: BinaryIO, name: str) -> None:
    """Append to ``out`` what it lacks of ``url``; from the start where the server does not take up at a byte."""
    have = out.seek(0, 2)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing lies beyond the part: it is whole if it has the size that the server tells, else worthless.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        out.truncate(0)
        _complete(url, out, name)
        return
    with answer:
        if answer.status != 206:
            out.truncate(0)
            have = 0
        elif _start(answer.headers) != have:
            raise OSError(f"the server did not answer from byte {have} on")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with Progress(total=total, initial=have, desc=name, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := answer.read(_CHUNK_BYTES):
                out.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if total is not None and have != total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _start(headers: Any) -> int | None:
    """First byte of ``Content-Range: bytes START-END/TOTAL``."""
    first = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None
