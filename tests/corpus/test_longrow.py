"""Rows that are read in pieces: the same document as from a parser, and the same verdict on every damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.corpus import documents, longrow
from ropewalk.corpus.documents import Document, Fields, Refused, parse, read_rows
from ropewalk.corpus.lines import Lines, TooLong

TEXTS = {
    "ascii": "abc def\n" * 5000,
    "escapes": '\\"\\\\ \t\n{"text": [}' * 3000,
    "chinese": "绳索行走" * 5000,
    "emoji": "😀🧵" * 4000,
    "one word": "x" * 40_000,
}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONG_ROW", 1)
    monkeypatch.setattr(longrow, "PIECE_BYTES", 1000)


def only_row(path: Path) -> Document | Refused:
    [(_, row)] = read_rows(path)
    return row


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_long_row_is_the_document_that_a_parser_finds(tmp_path: Path, name: str, ascii_only: bool) -> None:
    meta = {"url": "http://a.org", "text": "inner", "source": "c4", "list": [1, {"text": '"}'}], "none": None}
    row = json.dumps({"meta": meta, "text": TEXTS[name], "n": -1.5e3}, ensure_ascii=ascii_only).encode()
    (tmp_path / "a.jsonl").write_bytes(row + b"\n")
    long, expected = only_row(tmp_path / "a.jsonl"), parse(row, Fields())
    assert isinstance(long, Document)
    assert isinstance(expected, Document)
    pieces = list(long.pieces())
    assert "".join(pieces) == expected.text
    assert len(pieces) > 10
    assert (long.name, long.subset, long.group) == (expected.name, expected.subset, expected.group)


@pytest.mark.usefixtures("_small")
def test_a_long_row_without_an_id_is_named_by_its_text(tmp_path: Path) -> None:
    row = json.dumps({"text": TEXTS["chinese"]}).encode()
    (tmp_path / "a.jsonl").write_bytes(row)
    long, expected = only_row(tmp_path / "a.jsonl"), parse(row, Fields())
    assert isinstance(long, Document)
    assert isinstance(expected, Document)
    assert long.name == expected.name


BAD = {
    "no text": [
        b'{"meta": {}}', b'{"text": null}', b'{"text": 3}', b'{"text": ["a"]}', b"[1]", b'{"a": {"text": "x"}}',
    ],
    "empty text": [b'{"text": ""}', b'{"text": " \\n"}'],
    "malformed JSON": [
        b'{"text": "' + b"a" * 3000 + b'\\x"}',
        b'{"text": "a" "b": 1}', b'{"text": "a", "n": 1.1.1}', b'{"text": "a"} x',
    ],
    "not UTF-8": [b'{"text": "' + b"b" * 1500 + b"caf\xe9" + b"c" * 1500 + b'"}'],
    "text with lone surrogates": [b'{"text": "' + b"d" * 1500 + b"\\ud83d" + b"e" * 1500 + b'"}'],
}  # fmt: skip


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason, rows in BAD.items() for row in rows])
def test_a_long_row_without_usable_text_is_refused_for_the_same_reason(tmp_path: Path, reason: str, row: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(row + b"\n")
    long = only_row(tmp_path / "a.jsonl")
    assert isinstance(long, Refused)
    assert long.reason == reason
    assert parse(row + b"\n", Fields()) == long


def test_a_line_above_the_bound_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a" * 3_000_000 + b"\nshort\n" + b"b" * 3_000_000)
    lines = list(Lines(str(path), largest=1_000_000))
    assert lines == [TooLong(3_000_001, ended=True), b"short\n", TooLong(3_000_000, ended=False)]


READ = """
import re, sys
from pathlib import Path
from ropewalk.corpus.documents import Document, read_rows
(_, document), = read_rows(sys.argv[1])
assert isinstance(document, Document)
characters = sum(map(len, document.pieces()))
# Not getrusage's: that begins with what the parent had before exec.
print(characters, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_a_row_of_200_mb_takes_its_own_size_and_little_more(tmp_path: Path) -> None:
    path, line = tmp_path / "a.jsonl", "ropes and 绳索 and 😀 "
    count = 200_000_000 // len(line.encode())
    with path.open("w", encoding="utf-8") as out:
        out.write('{"text": "')
        for _ in range(count // 1000):
            out.write(line * 1000)
        out.write('"}\n')
    ran = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    characters, peak_kib = map(int, ran.stdout.split())
    assert characters == len(line) * (count // 1000) * 1000
    assert peak_kib < 420_000


def test_the_bounds_are_those_of_the_text() -> None:
    row = b'{"a": {"text": "no"}, "text": "yes", "b": "c"}'
    rest, text, reason = longrow.read_long_row(row, "text")
    assert text is not None
    assert reason is None
    assert "".join(text.pieces()) == "yes"
    assert json.loads(rest) == {"a": {"text": "no"}, "text": "", "b": "c"}
