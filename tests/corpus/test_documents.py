"""Reading RedPajama-V1 rows: all genuine ones, every compression, and every kind of damage."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ropewalk.corpus.documents import Document, Fields, Refused, read_rows
from ropewalk.corpus.shards import TEXT, Shard

ROWS = {"arxiv": 19, "book": 2, "c4": 2000, "common_crawl": 20, "github": 200, "stackexchange": 2000, "wikipedia": 20}
"""Genuine rows with text; one of arxiv's 20 holds nothing but a newline."""
FOLDERS = {
    "arxiv": "arxiv",
    "book": "book",
    "c4-rp": "c4",
    "cc": "common_crawl",
    "github": "github",
    "stackexchange": "stackexchange",
    "wiki": "wikipedia",
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
compressions = pytest.mark.parametrize("suffix", COMPRESS)


def read(*paths: Path) -> tuple[list[Document], Counter[str]]:
    rows = [row for path in paths for _, row in read_rows(path)]
    documents = [row for row in rows if isinstance(row, Document)]
    return documents, Counter(row.reason for row in rows if isinstance(row, Refused))


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def texts(count: int) -> bytes:
    return lines(*({"text": f"row {number} " + "x" * 200, "meta": {}} for number in range(count)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](data))
    return path


@pytest.fixture(scope="module")
def genuine(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "redpajama_v1").glob("*/*.jsonl"))


@compressions
def test_all_4262_genuine_rows_are_read_or_counted(genuine: list[Path], tmp_path: Path, suffix: str) -> None:
    paths = [write(tmp_path / f"{path.name}{suffix}", path.read_bytes()) for path in genuine]
    documents, rejected = read(*paths)
    assert Counter(document.subset for document in documents) == ROWS
    assert rejected == {"empty text": 1}
    assert len(documents) + rejected.total() == 4262
    genuine_texts = [json.loads(line)["text"] for path in genuine for line in path.open(encoding="utf-8")]
    assert [document.text for document in documents] == [text for text in genuine_texts if text.strip()]


def test_every_subset_is_known_by_its_rows(genuine: list[Path]) -> None:
    for path in genuine:
        documents, _ = read(path)
        assert {document.subset for document in documents} == {FOLDERS[path.parent.name]}


def test_genuine_documents_have_names_of_their_own(genuine: list[Path]) -> None:
    documents, _ = read(*genuine)
    assert len({document.name for document in documents}) == len(documents)
    assert all(document.group for document in documents)


@pytest.mark.parametrize(
    ("row", "subset", "name"),
    [
        ({"meta": {"arxiv_id": "1607.04768", "url": "https://arxiv.org/abs/1607.04768"}}, "arxiv", "arxiv:1607.04768"),
        ({"meta": {"repo_name": "a/b", "path": "c.py", "source": "github"}}, "github", "github:a/b/c.py"),
        ({"meta": {"short_book_title": "Emma", "publication_date": 1815}}, "book", "book:Emma"),
        ({"meta": {"title": "Emma"}}, "book", "book:Emma"),
        ({"meta": {"source": "c4", "url": "https://a.org/"}}, "c4", "https://a.org/"),
        ({"meta": {"source": "stackexchange", "url": "https://b.org/q/1"}}, "stackexchange", "https://b.org/q/1"),
        (
            {"meta": {"title": "Sea", "url": "https://en.wikipedia.org/wiki/Sea"}},
            "wikipedia",
            "https://en.wikipedia.org/wiki/Sea",
        ),
        ({"source": "cc/2019-30/en_head_0000.json.gz/line4"}, "common_crawl", "cc/2019-30/en_head_0000.json.gz/line4"),
        ({"meta": {"source": "stdlib", "name": "stdlib/json", "part": 1}}, "stdlib", "stdlib/json#1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_gets_its_subset_and_name(tmp_path: Path, row: dict[str, Any], subset: str, name: str) -> None:
    [document], _ = read(write(tmp_path / "a.jsonl", lines({"text": "words", **row})))
    assert (document.subset, document.name) == (subset, name)
    assert document.group == name.partition("#")[0]


ARXIV = {"arxiv_id": "2101.00001", "url": "https://arxiv.org/abs/2101.00001"}
CRAWL = "cc/2019-30/en_middle_0053.json.gz/line1"
NAMED_SUBSETS = {
    "RedPajama-1T on the hub": ({"meta": json.dumps(ARXIV), "red_pajama_subset": "arxiv"}, "arxiv"),
    "RedPajama's sample on the hub": ({"meta": str(ARXIV)}, "arxiv"),
    "a crawl in RedPajama's sample on the hub": ({"meta": str({"wiki_prob": 0.5, "source": CRAWL})}, "common_crawl"),
    "SlimPajama": ({"meta": {"redpajama_set_name": "RedPajamaBook"}}, "book"),
    "SlimPajama's crawl": ({"meta": {"redpajama_set_name": "RedPajamaCommonCrawl"}}, "common_crawl"),
    "SlimPajama with meta as a string": ({"meta": '{"redpajama_set_name": "RedPajamaArXiv"}'}, "arxiv"),
    "the Pile": ({"meta": {"pile_set_name": "Wikipedia (en)"}}, "Wikipedia (en)"),
    "the Pile with meta as a string": ({"meta": "{'pile_set_name': 'Books3'}"}, "Books3"),
    "Dolma": ({"id": "d1", "source": "pes2o", "metadata": {"year": 2020, "title": "T", "url": "U"}}, "pes2o"),
    "a subset beside the text": ({"subset": "law"}, "law"),
    "a source in meta": ({"meta": {"source": "news", "title": "T", "url": "https://a.org"}}, "news"),
}


@pytest.mark.parametrize(("row", "subset"), NAMED_SUBSETS.values(), ids=NAMED_SUBSETS)
def test_a_row_that_names_its_source_keeps_it_as_subset(tmp_path: Path, row: dict[str, Any], subset: str) -> None:
    [document], _ = read(write(tmp_path / "a.jsonl.zst", lines({"text": "words", **row})))
    assert document.subset == subset


def test_a_row_of_the_hub_has_the_name_that_it_has_in_redpajama(tmp_path: Path) -> None:
    metas = (ARXIV, json.dumps(ARXIV), str(ARXIV))
    documents, _ = read(write(tmp_path / "a.jsonl", lines(*({"text": "words", "meta": meta} for meta in metas))))
    assert {document.name for document in documents} == {"arxiv:2101.00001"}


@pytest.mark.parametrize(
    ("field", "row", "subset"),
    [
        ("domain", {"domain": "law", "source": "news"}, "law"),
        ("meta.a.b", {"meta": '{"a": {"b": " x/y "}}'}, "x/y"),
        ("level", {"level": 3}, "3"),
        ("domain", {"source": "news"}, "other"),
        ("domain", {"domain": "", "source": "news"}, "other"),
        ("domain", {"domain": ["law"]}, "other"),
    ],
)
def test_the_subset_is_taken_from_the_field_that_is_configured(
    tmp_path: Path, field: str, row: dict[str, Any], subset: str
) -> None:
    path = write(tmp_path / "a.jsonl", lines({"text": "words", **row}))
    [(_, document)] = read_rows(path, Fields(subset=field))
    assert isinstance(document, Document)
    assert document.subset == subset


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@compressions
def test_rows_in_the_encodings_of_windows_are_read(tmp_path: Path, suffix: str, encoding: str) -> None:
    rows = [{"text": f"row {number} é 😀 \u0a0a"} for number in range(3000)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    documents, rejected = read(write(tmp_path / f"a.jsonl{suffix}", text.encode(encoding)))
    assert [document.text for document in documents] == [row["text"] for row in rows]
    assert not rejected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_text_file_in_an_encoding_of_windows_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Smörgås 😀\r\nand more\n".encode(encoding))
    [(_, document)] = Shard(str(path), TEXT).rows()
    assert isinstance(document, Document)
    assert document.text == "Smörgås 😀\nand more\n"


def test_damage_in_a_file_in_utf_16_is_counted_or_named(tmp_path: Path) -> None:
    rows = '{"text": "a"}\n{"text": "\ud83d"}\n{"text": "b"}\n'
    documents, rejected = read(write(tmp_path / "a.jsonl", rows.encode("utf-16", "surrogatepass")))
    assert [document.text for document in documents] == ["a", "b"]
    assert rejected == {"text with lone surrogates": 1}
    with pytest.raises(ValueError, match=r"b\.jsonl is cut off in row 3; fetch the file again"):
        read(write(tmp_path / "b.jsonl", rows.encode("utf-16", "surrogatepass")[:-9]))
    with pytest.raises(ValueError, match=r"c\.jsonl is not utf-32-le after row 0; save it as UTF-8"):
        read(write(tmp_path / "c.jsonl", b"{\0\0\0" + b"\xff" * 8))


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"meta": None},
        {"meta": "text"},
        {"meta": "{"},
        {"meta": "{" * 60_000},
        {"meta": "{1: " + "-" * 60_000 + "1}"},
        {"meta": {"url": 3}},
        {"source": 1},
        {"source": " "},
        {"source": "https://a.org/1"},
        {"source": "x" * 65},
        {"source": "a\nb"},
    ],
    ids=lambda row: str(row)[:40],
)
def test_a_row_of_no_known_shape_is_still_a_document(tmp_path: Path, row: dict[str, Any]) -> None:
    [document], rejected = read(write(tmp_path / "a.jsonl", lines({"text": "words", **row})))
    assert document.subset == "other"
    assert document.name == document.group
    assert document.name
    assert not rejected


def test_rows_without_usable_text_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        lines({"text": "first"}, {"meta": {}}, {"text": None}, {"text": 3}, [1], "text", {"text": ""}, {"text": " \n"})
        + b'{"text": "cut"\n'
        + b"not json\n"
        + b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n"
        + b"[" * 100_000 + b"\n"
        + b'{"text": "caf\xe9"}\n'
        + b'{"text": "half \\ud83d"}\n'
        + b"\n \n"
        + lines({"text": "last"})
    )  # fmt: skip
    documents, rejected = read(path)
    assert [document.text for document in documents] == ["first", "last"]
    assert rejected == {
        "no text": 5,
        "empty text": 2,
        "malformed JSON": 4,
        "not UTF-8": 1,
        "text with lone surrogates": 1,
    }


@compressions
def test_a_last_row_without_newline_is_read(tmp_path: Path, suffix: str) -> None:
    documents, _ = read(write(tmp_path / f"a.jsonl{suffix}", texts(3).rstrip()))
    assert len(documents) == 3


@compressions
def test_a_file_cut_off_in_the_middle_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](texts(500))
    path = tmp_path / f"a.jsonl{suffix}"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"a\.jsonl.* fetch the file again") as raised:
            read(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("missing", [1, 2, 3, 4, 8])
def test_a_compressed_file_that_lacks_its_last_bytes_is_refused(tmp_path: Path, suffix: str, missing: int) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    compress = zstandard.ZstdCompressor(write_checksum=True).compress if suffix == ".zst" else gzip.compress
    path.write_bytes(compress(texts(20))[:-missing])
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    data = bytearray(COMPRESS[suffix](texts(500)))
    data[20:40] = b"\xff" * 20
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_it_says_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(texts(3))
    with pytest.raises(ValueError, match="cannot be decompressed after row 0"):
        read(path)


@compressions
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.touch()
    with pytest.raises(ValueError, match="is empty"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_frames_in_one_file_are_read_as_one(tmp_path: Path, suffix: str) -> None:
    data = texts(40)
    frames = b"".join(COMPRESS[suffix](data[start : start + 1000]) for start in range(0, len(data), 1000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(frames)
    assert len(read(path)[0]) == 40
    path.write_bytes(frames[:-5])
    with pytest.raises(ValueError, match="fetch the file again"):
        read(path)


def test_a_row_longer_than_a_chunk_is_read(tmp_path: Path) -> None:
    text = "".join(chr(33 + (place * place) % 89) for place in range(89)) * 56_000
    path = write(tmp_path / "a.jsonl.zst", lines({"text": text}, {"text": "next"}))
    assert [document.text for document in read(path)[0]] == [text, "next"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl is not there"):
        read(tmp_path / "absent.jsonl")
