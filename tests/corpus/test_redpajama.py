"""Fetching RedPajama-V1 from a server on loopback that serves genuine rows."""

import hashlib
import re
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard

from published import Published
from ropewalk.config import CorpusConfig
from ropewalk.corpus import redpajama
from ropewalk.corpus.documents import Document
from ropewalk.corpus.fetch import Fetcher
from ropewalk.corpus.shards import Shard, read_documents
from ropewalk.corpus.sources import find_shards

SMALL_DISK = "64k"

QUICK = Fetcher(attempts=3, wait=0.01, timeout=2)
download_redpajama = partial(redpajama.download_redpajama, fetcher=QUICK)


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
    publish_sums(published)
    return published


def publish_sums(published: Published) -> None:
    """Checksums of all files, as upstream has them."""
    for path, data in list(published.files.items()):
        if path.startswith("/v1.0.0/") and not path.endswith("SUMS.txt"):
            subset, _, name = path.removeprefix("/v1.0.0/").partition("/")
            line = f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode()
            sums = f"/v1.0.0/sha256/{subset}_SHA256SUMS.txt"
            published.files[sums] = published.files.get(sums, b"") + line


def test_every_listed_file_is_fetched_whole_and_read(three: Published, tmp_path: Path) -> None:
    paths = download_redpajama(three.listing(), tmp_path, subsets=[])
    assert paths == [tmp_path / path.removeprefix("/v1.0.0/") for path in (ARXIV, BOOK, CRAWL)]
    assert [path.read_bytes() for path in paths] == [three.files[path] for path in (ARXIV, BOOK, CRAWL)]
    subsets = Counter(document.subset for document in read_documents(Shard(str(path)) for path in paths))
    assert subsets == {"arxiv": 10, "book": 2, "common_crawl": 10}
    assert not list(tmp_path.rglob(".*"))


def test_only_the_chosen_subsets_are_fetched(three: Published, tmp_path: Path) -> None:
    paths = download_redpajama(three.listing(), tmp_path, subsets=["common_crawl", "arxiv"])
    assert [path.relative_to(tmp_path).parts[0] for path in paths] == ["arxiv", "common_crawl"]
    assert sorted(three.fetched()) == sorted([ARXIV, CRAWL])


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


def test_a_connection_that_breaks_is_taken_up_where_it_broke(three: Published, tmp_path: Path) -> None:
    three.ends_after, three.breaks = 100_000, 3
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert [wanted for asked_path, wanted in three.asked if asked_path == ARXIV] == [
        None, "bytes=100000-", "bytes=200000-", "bytes=300000-",
    ]  # fmt: skip
    assert path.read_bytes() == three.files[ARXIV]


def test_a_broken_download_resumes_in_the_next_run(three: Published, tmp_path: Path) -> None:
    three.ends_after = 0
    part = tmp_path / "arxiv" / ".arxiv_1.jsonl.part"
    part.parent.mkdir()
    part.write_bytes(three.files[ARXIV][:100_000])
    with pytest.raises(OSError, match=rf"{ARXIV} cannot be fetched: .*; run the same command again to resume"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert not (tmp_path / "arxiv" / "arxiv_1.jsonl").exists()
    assert len(three.fetched()) == QUICK.attempts
    three.ends_after = None
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert three.asked[-1] == (ARXIV, "bytes=100000-")
    assert path.read_bytes() == three.files[ARXIV]


def test_a_server_that_does_not_resume_sends_the_whole_file(three: Published, tmp_path: Path) -> None:
    three.ends_after, three.breaks, three.ranges = 100_000, 1, False
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_asked_again_when_it_says(three: Published, tmp_path: Path, status: int) -> None:
    three.passing[ARXIV] = [(status, "1"), (status, "1")]
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]
    times = [at for (asked_path, _), at in zip(three.asked, three.at, strict=True) if asked_path == ARXIV]
    assert len(times) == 3
    assert min(later - sooner for sooner, later in pairwise(times)) >= 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_stays_busy_is_named(three: Published, tmp_path: Path, status: int) -> None:
    three.status[ARXIV] = status
    with pytest.raises(OSError, match=rf"{ARXIV} cannot be fetched: HTTP {status}"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert len(three.fetched()) == QUICK.attempts


def test_redirects_in_a_circle_end(three: Published, tmp_path: Path) -> None:
    three.redirects[ARXIV], three.redirects["/elsewhere"] = "/elsewhere", ARXIV
    with pytest.raises(OSError, match=rf"{ARXIV} cannot be fetched: it is redirected in a circle"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert len(three.fetched()) < 20


def test_a_redirect_is_followed(three: Published, tmp_path: Path) -> None:
    three.files["/elsewhere"] = three.files[ARXIV]
    three.redirects[ARXIV] = "/elsewhere"
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]


def test_a_server_that_stalls_is_given_up_and_taken_up_again(three: Published, tmp_path: Path) -> None:
    three.slow[ARXIV] = 5
    fetcher = Fetcher(attempts=3, wait=0.01, timeout=0.5)
    [path] = redpajama.download_redpajama(three.listing(), tmp_path, subsets=["arxiv"], fetcher=fetcher)
    assert path.read_bytes() == three.files[ARXIV]
    wanted = [wanted for asked_path, wanted in three.asked if asked_path == ARXIV]
    assert len(wanted) == 2
    assert wanted[1] is not None


def test_a_file_with_another_checksum_is_fetched_once_more_and_then_refused(three: Published, tmp_path: Path) -> None:
    sums = "/v1.0.0/sha256/arxiv_SHA256SUMS.txt"
    three.files[sums] = f"{'0' * 64}  arxiv_1.jsonl\n".encode()
    with pytest.raises(OSError, match=rf"{ARXIV} cannot be fetched: its sha256 is [0-9a-f]{{64}}, published is 0000"):
        download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert three.fetched() == [ARXIV, ARXIV]
    assert not (tmp_path / "arxiv" / "arxiv_1.jsonl").exists()


def test_a_damaged_part_is_thrown_away(three: Published, tmp_path: Path) -> None:
    part = tmp_path / "arxiv" / ".arxiv_1.jsonl.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]
    assert [wanted for asked_path, wanted in three.asked if asked_path == ARXIV] == ["bytes=1000-", None]


def test_files_without_published_sums_are_fetched_with_a_warning(three: Published, tmp_path: Path) -> None:
    del three.files["/v1.0.0/sha256/arxiv_SHA256SUMS.txt"]
    with pytest.warns(UserWarning, match="the files of arxiv are not checked: .*HTTP 404"):
        [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.is_file()


def test_files_are_fetched_in_parallel(published: Published, tmp_path: Path) -> None:
    paths = [f"/v1.0.0/c4/{number}.jsonl" for number in range(6)]
    for path in paths:
        published.files[path] = path.encode() * 1000
        published.slow[path] = 0.3
    published.list_files(*(published.url + path for path in paths))
    publish_sums(published)
    fetched = download_redpajama(published.listing(), tmp_path, subsets=[])
    assert [path.name for path in fetched] == [f"{number}.jsonl" for number in range(6)]
    assert published.most_at_once > 2


def test_a_cap_leaves_out_what_comes_after_it(three: Published, tmp_path: Path) -> None:
    cap = Fetcher(wait=0.01, max_bytes=len(three.files[ARXIV]) + 10)
    with pytest.warns(UserWarning, match="1 of 3 files are fetched"):
        paths = redpajama.download_redpajama(three.listing(), tmp_path, subsets=[], fetcher=cap)
    assert [path.name for path in paths] == ["arxiv_1.jsonl"]
    with pytest.raises(ValueError, match=r"more than corpus\.max_download_mib; raise that"):
        redpajama.download_redpajama(
            three.listing(), tmp_path / "other", subsets=[], fetcher=Fetcher(wait=0.01, max_bytes=5)
        )


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_has_every_byte_is_kept_and_one_that_has_more_is_not(
    three: Published, tmp_path: Path, extra: bytes
) -> None:
    part = tmp_path / "arxiv" / ".arxiv_1.jsonl.part"
    part.parent.mkdir()
    part.write_bytes(three.files[ARXIV] + extra)
    [path] = download_redpajama(three.listing(), tmp_path, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]
    assert len(three.fetched()) <= (3 if extra else 1)


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
    with pytest.raises(OSError, match=r"the listing .*urls\.txt cannot be fetched: HTTP 404"):
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


def test_the_samples_files_are_fetched_and_read(published: Published, shared: Path, tmp_path: Path) -> None:
    rows = shared / "data" / "redpajama_v1"
    published.files["/sample/c4_sample.jsonl"] = (rows / "c4-rp" / "sample_c4-rp1.jsonl").read_bytes()
    published.files["/sample/arxiv_sample.jsonl"] = (rows / "arxiv" / "sample_arxiv1.jsonl").read_bytes()
    corpus = CorpusConfig(name="redpajama_sample", url=f"{published.url}/sample", subsets=["arxiv", "book", "c4"])
    with pytest.warns(UserWarning, match=r"book_sample\.jsonl is no longer published"):
        shards = find_shards(corpus, folder=tmp_path, downloads=tmp_path)
    rows_read = [row for shard in shards for _, row in shard.rows()]
    assert [Path(shard.path).name for shard in shards] == ["arxiv_sample.jsonl", "c4_sample.jsonl"]
    assert {row.subset for row in rows_read if isinstance(row, Document)} == {"arxiv", "c4"}
    with pytest.raises(OSError, match=r"wikipedia_sample\.jsonl cannot be fetched: HTTP 404"):
        find_shards(replace(corpus, subsets=["wikipedia"]), folder=tmp_path, downloads=tmp_path)


def test_a_disk_that_fills_while_fetching_is_named_and_the_run_resumes(three: Published, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"no space left on the disk of .*arxiv; free some and run the same command"):
        download_redpajama(three.listing(), small_disk, subsets=["arxiv"])
    assert not (small_disk / "arxiv" / "arxiv_1.jsonl").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    [path] = download_redpajama(three.listing(), small_disk, subsets=["arxiv"])
    assert path.read_bytes() == three.files[ARXIV]


def test_a_link_in_the_folder_is_not_followed_out_of_it(three: Published, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arxiv").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="which is not of the form"):
        download_redpajama(three.listing(), tmp_path / "data", subsets=["arxiv"])
    assert not list((tmp_path / "outside").iterdir())
