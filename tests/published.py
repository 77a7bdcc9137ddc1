"""A real HTTP server on loopback that publishes files, and answers as badly as servers do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Published:
    """What the server holds and how it answers; ``asked`` records (path, Range header) of what is sent."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    """Answers other than 200 by path."""
    passing: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """(status, Retry-After) of a path's first answers, each given once."""
    redirects: dict[str, str] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds before a path's body resumes after its first half; the first time only."""
    ends_after: int | None = None
    """Bytes after which every connection breaks ..."""
    breaks: int | None = None
    """... for so many answers, all by default."""
    ranges: bool = True
    """Whether the server takes up at a byte."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    """When each was asked for, in seconds."""
    most_at_once: int = 0

    def listing(self) -> str:
        return f"{self.url}/urls.txt"

    def list_files(self, *lines: str) -> None:
        self.files["/urls.txt"] = "\n".join(lines).encode() + b"\n"

    def fetched(self) -> list[str]:
        """What was asked for but listings and checksums."""
        return [path for path, _ in self.asked if not path.endswith(".txt")]


class _Handler(BaseHTTPRequestHandler):
    published: Published
    lock = threading.Lock()
    now = 0

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        published = self.published
        with self.lock:
            published.asked.append((self.path, self.headers.get("Range")))
            published.at.append(time.monotonic())
            type(self).now += 1
            published.most_at_once = max(published.most_at_once, self.now)
        try:
            self._answer(body=True)
        finally:
            with self.lock:
                type(self).now -= 1

    def _answer(self, *, body: bool) -> None:
        published, wanted = self.published, self.headers.get("Range")
        if self.path in published.redirects:
            self.send_response(302)
            self.send_header("Location", published.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if body and published.passing.get(self.path):
            status, after = published.passing[self.path].pop(0)
            self.send_response(status)
            if after:
                self.send_header("Retry-After", after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = published.files.get(self.path)
        if data is None or self.path in published.status:
            self.send_error(published.status.get(self.path, 404))
            return
        start, end = 0, len(data)
        if wanted and published.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1) if last else end
        if start and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        partial = (start, end) != (0, len(data))
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            self._send(data[start:end])

    def _send(self, data: bytes) -> None:
        published = self.published
        cut = None
        with self.lock:
            if published.ends_after is not None and not self.path.endswith(".txt") and published.breaks != 0:
                cut = published.ends_after
                published.breaks = None if published.breaks is None else published.breaks - 1
        if pause := published.slow.pop(self.path, 0):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(pause)
            data = data[len(data) // 2 :]
        self.wfile.write(data[:cut])

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no fault of the server."""


@contextmanager
def publishing() -> Iterator[Published]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        _Handler.published = Published(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield _Handler.published
        server.shutdown()
        thread.join()
