"""Fetching RedPajama-V1 from a server on loopback that serves genuine rows."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ropewalk.corpus.documents import read_documents
from ropewalk.corpus.redpajama import download_redpajama


@dataclass
class Published:
    """What the server holds and how it answers; ``asked`` records (path, Range header)."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    """Answers other than 200 by path."""
    ends_after: int | None = None
    """Bytes after which the connection breaks."""
    ranges: bool = True
    """Whether the server takes up at a byte."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def listing(self) -> str:
        return f"{self.url}/urls.txt"

    def list_files(self, *lines: str) -> None:
        self.files["/urls.txt"] = "\n".join(lines).encode() + b"\n"

    def fetched(self) -> list[str]:
        return [path for path, _ in self.asked if path != "/urls.txt"]


class Handler(BaseHTTPRequestHandler):
    published: Published

    def do_GET(self) -> None:
        published, wanted = self.published, self.headers.get("Range")
        published.asked.append((self.path, wanted))
        data = published.files.get(self.path)
        if data is None or self.path in published.status:
            self.send_error(published.status.get(self.path, 404))
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and published.ranges else 0
        if start and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = published.ends_after if self.path != "/urls.txt" else None
        self.wfile.write(data[start:][:cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.published = Published(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Handler.published
        server.shutdown()
        thread.join()


ARXIV = "/v1.0.0/arxiv/arxiv_1.jsonl"
BOOK = "/v1.0.0/book/book.jsonl"
CRAWL = "/v1.0.0/common_crawl/2019-30/en_head_0000.jsonl.zst"


@pytest.fixture
def three(published: Published, shared: Path) -> Published:
    """One genuine file each of arxiv and book, and one of common_crawl as .zst."""
    rows = shared / "data" / "redpajama_v1"
    published.files[ARXIV] = (rows / "arxiv" / "sample_arxiv1.jsonl").read_bytes()
    published.files[BOOK] = (rows / "book" / "sample_book2.jsonl").read_bytes()
    published.files[CRAWL] = zstandard.compress((rows / "cc" / "sample_cc1.jsonl").read_bytes())
    published.list_files(*(published.url + path for path in (ARXIV, BOOK, CRAWL)))
    return published


def test_every_listed_file_is_fetched_whole_and_read(three: Published, tmp_path: Path) -> None:
    paths = download_redpajama(three.listing(), tmp_path, subsets=[])
    assert paths == [tmp_path / path.removeprefix("/v1.0.0/") for path in (ARXIV, BOOK, CRAWL)]
    assert [path.read_bytes() for path in paths] == [three.files[path] for path in (ARXIV, BOOK, CRAWL)]
    rejected: Counter[str] = Counter()
    subsets = Counter(document.subset for document in read_documents(paths, rejected=rejected))
    assert subsets == {"arxiv": 10, "book": 2, "common_crawl": 10}
    assert not rejected
    assert not list(tmp_path.rglob(".*"))


def test_only_the_chosen_subsets_are_fetched(three: Published, tmp_path: Path) -> None:
    paths = download_redpajama(three.listing(), tmp_path, subsets=["common_crawl", "arxiv"])
    assert [path.relative_to(tmp_path).parts[0] for path in paths] == ["arxiv", "common_crawl"]
    assert three.fetched() == [ARXIV, CRAWL]


def test_an_unknown_subset_is_refused_with_those_there_are(three: Published, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lists no subset wiki; it has arxiv, book, common_crawl"):
        download_redpajama(three.listing(), tmp_path, subsets=["wiki"])


def test_a_whole_file_is_not_fetched_again(three: Published, tmp_path: Path) -> None:
    first = download_redpajama(three.listing(), tmp_path, subsets=[])
    three.asked.clear()
    assert download_redpajama(three.listing(), tmp_path, subsets=[]) == first
    assert three.fetched() == []


def test_a_listing_on_disk_works_too(three: Published, tmp_path: Path) -> None:
    listing = tmp_path / "urls.txt"
    listing.write_bytes(three.files["/urls.txt"])
    assert len(download_redpajama(str(listing), tmp_path / "data", subsets=["arxiv"])) == 1


def test_relative_lines_blank_lines_and_repeats(three: Published, tmp_path: Path) -> None:
    three.list_files(ARXIV.removeprefix("/"), "", f"  {ARXIV}  ", "# comment", three.url + ARXIV)
    assert download_redpajama(three.listing(), tmp_path, subsets=[]) == [tmp_path / "arxiv" / "arxiv_1.jsonl"]
    assert three.fetched() == [ARXIV]


def test_a_broken_download_goes_on_where_it_stopped(three: Published, tmp_path: Path) -> None:
    three.ends_after = 100_000
    with pytest.raises(OSError, match=rf"{ARXIV} cannot be fetched: the connection ended after 100000 of 498126"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert not (tmp_path / "arxiv" / "arxiv_1.jsonl").exists()
    three.ends_after = None
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert three.asked[-1] == (ARXIV, "bytes=100000-")
    assert path.read_bytes() == three.files[ARXIV]


def test_a_server_that_does_not_resume_sends_the_whole_file(three: Published, tmp_path: Path) -> None:
    three.ends_after = 100_000
    with pytest.raises(OSError, match="connection ended"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    three.ends_after, three.ranges = None, False
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_has_every_byte_is_kept_and_one_that_has_more_is_not(
    three: Published, tmp_path: Path, extra: bytes
) -> None:
    part = tmp_path / "arxiv" / ".arxiv_1.jsonl.part"
    part.parent.mkdir()
    part.write_bytes(three.files[ARXIV] + extra)
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]
    assert len(three.fetched()) == (2 if extra else 1)


def test_two_downloads_at_once_do_not_meet(three: Published, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=download_redpajama, args=(three.listing(), tmp_path), kwargs={"subsets": ["arxiv"]})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert three.fetched() == [ARXIV]
    assert [path.name for path in (tmp_path / "arxiv").iterdir()] == ["arxiv_1.jsonl"]
    assert (tmp_path / "arxiv" / "arxiv_1.jsonl").read_bytes() == three.files[ARXIV]


@pytest.mark.parametrize("status", [403, 404])
def test_the_withdrawn_books_are_passed_over_with_a_warning(three: Published, tmp_path: Path, status: int) -> None:
    three.status[BOOK] = status
    with pytest.warns(UserWarning, match=rf"book\.jsonl is no longer published \(HTTP {status}\)"):
        paths = download_redpajama(three.listing(), tmp_path, subsets=[])
    assert [path.name for path in paths] == ["arxiv_1.jsonl", "en_head_0000.jsonl.zst"]


@pytest.mark.parametrize(("path", "status"), [(ARXIV, 404), (ARXIV, 403), (ARXIV, 500), (BOOK, 500), (BOOK, 410)])
def test_any_other_refusal_names_the_url(three: Published, tmp_path: Path, path: str, status: int) -> None:
    three.status[path] = status
    with pytest.raises(OSError, match=rf"{path} cannot be fetched: HTTP {status}") as raised:
        download_redpajama(three.listing(), tmp_path, subsets=[])
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text(f"http://127.0.0.1:9{ARXIV}\n")
    with pytest.raises(OSError, match=rf"http://127\.0\.0\.1:9{ARXIV} cannot be fetched: .*refused"):
        download_redpajama(str(tmp_path / "urls.txt"), tmp_path / "data", subsets=[])


def test_a_missing_listing_is_named(published: Published, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"urls\.txt cannot be fetched: HTTP Error 404"):
        download_redpajama(published.listing(), tmp_path, subsets=[])
    with pytest.raises(FileNotFoundError, match="absent"):
        download_redpajama(str(tmp_path / "absent"), tmp_path, subsets=[])


def test_an_empty_listing_is_refused(published: Published, tmp_path: Path) -> None:
    published.list_files("", "# nothing")
    with pytest.raises(ValueError, match="names no files"):
        download_redpajama(published.listing(), tmp_path, subsets=[])


@pytest.mark.parametrize(
    "line",
    [
        "v1.0.0/arxiv/../../../escaped.jsonl",
        "v1.0.0/arxiv/%2e%2e/%2e%2e/escaped.jsonl",
        "v1.0.0/arxiv/..%2f..%2fescaped.jsonl",
        "v1.0.0/%2e%2e/escaped.jsonl",
        "v1.0.0/arxiv/a%00.jsonl",
        "http://127.0.0.1:9/v1.0.0/arxiv//escaped.jsonl",
        "v1.0.0/arxiv/.escaped.part",
        "v1.0.0/arxiv/..%5cescaped.jsonl",
        "v1.0.0/arxiv",
        "v1.0.0/",
        "escaped.jsonl",
        "file:///etc/v1.0.0/arxiv/passwd",
        "ftp://127.0.0.1/v1.0.0/arxiv/a.jsonl",
    ],
)
def test_names_from_outside_never_leave_the_folder(published: Published, tmp_path: Path, line: str) -> None:
    published.list_files(line)
    folder = tmp_path / "a" / "b" / "data"
    with pytest.raises(ValueError, match=rf"^{re.escape(published.listing())} lists .*, which is not "):
        download_redpajama(published.listing(), folder, subsets=[])
    assert not list(tmp_path.rglob("*escaped*"))
    assert published.fetched() == []


def test_a_link_in_the_folder_is_not_followed_out_of_it(three: Published, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arxiv").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="which is not of the form"):
        download_redpajama(three.listing(), tmp_path / "data", subsets=["arxiv"])
    assert not list((tmp_path / "outside").iterdir())
