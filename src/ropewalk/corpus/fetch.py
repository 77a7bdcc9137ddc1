"""Download of published files over HTTP: parallel, resumable and checked; a file is whole or absent.

requests sends, and urllib3 retries: after 429 and 503 once the time that the server names has passed, after other
faults of servers and connections with growing waits. A download that breaks off resumes at the byte where it broke.
"""

import errno
import fcntl
import hashlib
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ropewalk.progress import Progress

_CHUNK_BYTES = 1 << 20
_PART_SUFFIX = ".part"
_LONGEST_WAIT = 600


@dataclass(frozen=True)
class Remote:
    """A published file and the path that it is downloaded to."""

    url: str
    target: Path
    sha256: str | None = None
    withdrawn: bool = False
    """Whether the file is known to be withdrawn, so that 403 and 404 are reported and the file is skipped."""


@dataclass(frozen=True)
class Fetcher:
    """How files are downloaded."""

    parallel: int = 8
    """Number of files downloaded at the same time."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""
    attempts: int = 5
    """Number of tries of each request, and at each byte where a file breaks off."""
    wait: float = 1.0
    """Seconds before the second try, doubled for each further try, unless the server names a time."""
    max_bytes: int | None = None
    """Limit on the size of all files together; the files beyond it are left out."""

    def text(self, url: str) -> str:
        """Content of a small file such as a listing; raises OSError if it cannot be fetched."""
        with self._session() as session, _named(url):
            response = session.get(url, timeout=self.timeout)
            response.raise_for_status()
            return response.content.decode("utf-8", errors="replace")

    def fetch_all(self, files: Sequence[Remote]) -> list[Path]:
        """Download files to their targets and return the targets that exist afterwards, in order.

        A target that exists already is whole and is not downloaded again; a part that an earlier call left is resumed.

        Raises:
            OSError: a file cannot be fetched, is not what was published, or cannot be written; the error names it.
            ValueError: the first file alone is larger than ``max_bytes``.
        """
        files = self._within_cap(files)
        stop = threading.Event()
        with (
            Progress(desc="fetching", unit="B", unit_scale=True, disable=not files, leave=False) as bar,
            ThreadPoolExecutor(self.parallel) as pool,
        ):
            pending = [pool.submit(self._fetch, remote, bar, stop) for remote in files]
            try:
                codes = [future.result() for future in pending]
            except BaseException:
                # Downloads under way keep what they have and end soon.
                stop.set()
                for future in pending:
                    future.cancel()
                raise
        for remote, code in zip(files, codes, strict=True):
            if code:
                warnings.warn(f"{remote.url} is no longer published (HTTP {code}); passed over", stacklevel=2)
        return [remote.target for remote, code in zip(files, codes, strict=True) if not code]

    def _session(self) -> requests.Session:
        retry = Retry(
            total=self.attempts - 1,
            redirect=10,
            status_forcelist=(429, 500, 502, 503, 504),
            backoff_factor=self.wait / 2,
            backoff_max=_LONGEST_WAIT,
            respect_retry_after_header=True,
            retry_after_max=_LONGEST_WAIT,
            raise_on_status=False,
        )
        session = requests.Session()
        session.max_redirects = 10
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        # Bytes are counted and resumed as they are stored.
        session.headers["Accept-Encoding"] = "identity"
        return session

    def _within_cap(self, files: Sequence[Remote]) -> Sequence[Remote]:
        if self.max_bytes is None:
            return files
        with self._session() as session, ThreadPoolExecutor(self.parallel) as pool:
            sizes = list(pool.map(lambda remote: self._size(session, remote), files))
        kept, total = [], 0
        for remote, size in zip(files, sizes, strict=True):
            if total + size > self.max_bytes:
                break
            kept.append(remote)
            total += size
        if len(kept) < len(files):
            warnings.warn(
                f"{len(kept)} of {len(files)} files are fetched ({total:,} bytes), the others are beyond the cap of "
                f"{self.max_bytes:,} bytes",
                stacklevel=3,
            )
        if not kept:
            raise ValueError(
                f"{files[0].url} alone has {sizes[0]:,} bytes, more than corpus.max_download_mib; raise that"
            )
        return kept

    def _size(self, session: requests.Session, remote: Remote) -> int:
        if remote.target.is_file():
            return remote.target.stat().st_size
        with _named(remote.url):
            response = session.head(remote.url, timeout=self.timeout, allow_redirects=True)
            if remote.withdrawn and response.status_code in (403, 404):
                return 0
            response.raise_for_status()
        return int(response.headers.get("Content-Length", 0))

    def _fetch(self, remote: Remote, bar: Progress, stop: threading.Event) -> int:
        """Download to a part beside the target, then rename it; a second process waits for the first.

        Returns:
            0, or the HTTP status with which a withdrawn file was refused.
        """
        target = remote.target
        if target.is_file():
            return 0
        with _named(remote.url, target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}{_PART_SUFFIX}")
            with part.open("a+b") as out, self._session() as session:
                fcntl.flock(out, fcntl.LOCK_EX)
                if target.is_file():
                    part.unlink(missing_ok=True)
                    return 0
                try:
                    self._whole(session, remote, out, bar, stop)
                except requests.HTTPError as error:
                    if not out.seek(0, os.SEEK_END):
                        part.unlink(missing_ok=True)
                    code = 0 if error.response is None else error.response.status_code
                    if remote.withdrawn and code in (403, 404):
                        return code
                    raise
                part.replace(target)
        return 0

    def _whole(
        self, session: requests.Session, remote: Remote, out: BinaryIO, bar: Progress, stop: threading.Event
    ) -> None:
        """Complete a file and check it against its published hash; wrong content is fetched again once."""
        for again in (True, False):
            self._complete(session, remote.url, out, bar, stop)
            if remote.sha256 is None:
                break
            out.seek(0)
            digest = hashlib.file_digest(out, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest == remote.sha256:
                break
            out.truncate(0)
            if not again:
                raise OSError(f"its sha256 is {digest}, published is {remote.sha256}")
        out.flush()
        os.fsync(out.fileno())

    def _complete(
        self, session: requests.Session, url: str, out: BinaryIO, bar: Progress, stop: threading.Event
    ) -> None:
        """Append the missing bytes, resuming where the connection broke as long as each try brings some."""
        attempts_left = self.attempts
        while True:
            size = out.seek(0, os.SEEK_END)
            try:
                self._append(session, url, out, bar, stop)
                return
            except requests.HTTPError:
                raise
            except (requests.ConnectionError, requests.Timeout, _Broken):
                attempts_left = self.attempts if out.seek(0, os.SEEK_END) > size else attempts_left - 1
                if not attempts_left or stop.wait(self.wait):
                    raise

    def _append(self, session: requests.Session, url: str, out: BinaryIO, bar: Progress, stop: threading.Event) -> None:
        size = out.seek(0, os.SEEK_END)
        headers = {"Range": f"bytes={size}-"} if size else {}
        with session.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
            if response.status_code == 416 and size:
                # Nothing lies beyond the part: it is whole if it has the size that the server states.
                if response.headers.get("Content-Range", "").rpartition("/")[2] != str(size):
                    out.truncate(0)
                    raise _Broken("the part was longer than the file")
                return
            response.raise_for_status()
            if size and response.status_code != 206:
                out.truncate(0)
                size = 0
            elif size and _start(response.headers.get("Content-Range", "")) != size:
                raise OSError(f"the server did not answer from byte {size} on")
            length = response.headers.get("Content-Length")
            total = size + int(length) if length else None
            try:
                # read1 returns the bytes that have arrived; requests' iter_content loses those before a break.
                while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    out.write(chunk)
                    size += len(chunk)
                    bar.update(len(chunk))
                    if stop.is_set():
                        raise OSError("another file could not be fetched")
            except urllib3.exceptions.HTTPError as error:
                raise _Broken(f"the connection ended after {size} bytes ({_reason(error)})") from None
            finally:
                out.flush()
        if total is not None and size != total:
            raise _Broken(f"the connection ended after {size} of {total} bytes")


class _Broken(OSError):
    """A failure that may not happen again at the next try."""


def _start(content_range: str) -> int | None:
    """First byte of ``bytes START-END/TOTAL``."""
    first = content_range.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


@contextmanager
def _named(url: str, folder: Path | None = None) -> Iterator[None]:
    """Turn errors into one line that says which file failed, why, and what to do."""
    try:
        yield
    except requests.HTTPError as error:
        response = error.response
        status = str(error) if response is None else f"{response.status_code} {response.reason}"
        raise OSError(f"{url} cannot be fetched: HTTP {status}") from None
    except requests.TooManyRedirects:
        raise OSError(f"{url} cannot be fetched: it is redirected in a circle or more than 10 times") from None
    except OSError as error:  # errors of requests are OSErrors too
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no space left on the disk of {folder}; free some and run the same command again"
            raise OSError(message) from None
        if error.errno is not None and not isinstance(error, requests.RequestException):
            raise
        raise OSError(f"{url} cannot be fetched: {_reason(error)}; run the same command again to resume") from None


def _reason(error: Exception) -> str:
    """The innermost reason of an error of urllib3, without the memory address of the connection."""
    inner: BaseException | str = error
    while isinstance(inner, Exception):
        following = getattr(inner, "reason", None) or next((arg for arg in inner.args if arg), None)
        if not isinstance(following, Exception) or following is inner:
            break
        inner = following
    text = " ".join(str(inner).split())
    return text.partition("object at 0x")[2].partition(": ")[2] or text or repr(error)


def check_url(url: str, listing: str) -> None:
    """Raise ValueError for anything but an http(s) address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{listing} lists {url}, which is not an http(s) URL")
