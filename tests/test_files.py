"""Results are whole or absent, whatever ends the writing; tables come back as they were written."""

import errno
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from processes import run_until_killed, start
from ropewalk.files import file_hash, read_json, read_table, write_json, write_table, write_text, writing

KILLED = """
import sys
from pathlib import Path
from processes import kill_self
from ropewalk.files import writing
path = Path(sys.argv[1])
with writing(path) as aside:
    if sys.argv[2] == "folder":
        aside.mkdir()
        (aside / "part").write_text("half")
    else:
        aside.write_text("half")
    kill_self()
"""


def test_a_file_and_a_folder_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result"
    for text in ("first", "second"):
        with writing(path) as aside:
            aside.write_text(text)
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    folder = tmp_path / "folder"
    for name in ("a", "b"):
        with writing(folder) as aside:
            (aside / "inner").mkdir(parents=True)
            (aside / "inner" / name).write_text(name)
        assert [p.name for p in (folder / "inner").iterdir()] == [name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "new"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EACCES, "no")])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException, before: str | None) -> None:
    path = tmp_path / "result"
    if before is not None:
        path.write_text(before)

    def write() -> None:
        with writing(path) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    assert raised.value is error
    assert (path.read_text() if path.exists() else None) == before
    assert [p for p in tmp_path.iterdir() if p != path] == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_nothing_that_counts_and_the_next_one_clears_it_away(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result[1]"
    run_until_killed(KILLED, path, kind)
    assert not path.exists()
    assert [p.name.startswith(".result[1].writing-") for p in tmp_path.iterdir()] == [True]
    write_text(path, "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["result[1]"]


def test_what_a_running_process_writes_is_left_alone(tmp_path: Path) -> None:
    process = start("import time; time.sleep(60)")
    try:
        other = tmp_path / f".result.writing-{process.pid}"
        other.write_text("theirs")
        write_text(tmp_path / "result", "ours")
        assert other.read_text() == "theirs"
    finally:
        process.kill()
        process.wait()


SMALL_DISK = "64k"


LARGE = torch.zeros(100_000)
WRITERS: dict[str, Any] = {
    "text": lambda path: path.write_text("x" * 400_000),
    "torch": lambda path: torch.save(LARGE, path),
    "safetensors": lambda path: save_file({"x": LARGE}, path),
    "numpy": lambda path: np.save(path.open("wb"), LARGE.numpy()),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_gives_one_line_with_the_place_and_keeps_what_was_there(small_disk: Path, writer: str) -> None:
    path = small_disk / "result"
    path.write_text("old")

    def write() -> None:
        with writing(path) as aside:
            WRITERS[writer](aside)

    with pytest.raises(OSError, match=r"no space left on the disk of .*disk; free some and run the same command again"):
        write()
    assert [p.name for p in small_disk.iterdir()] == ["result"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota exceeded")])
def test_a_full_disk_or_quota_is_told_apart_from_other_errors(tmp_path: Path, error: OSError) -> None:
    def write() -> None:
        with writing(tmp_path / "result"):
            raise error

    with pytest.raises(OSError, match="no space left on the disk of"):
        write()


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        {"model": "base", "length": 256, "perplexity": 1 / 3, "variant": "s=8, replaced"},
        {"model": 'say "x"', "length": -1, "perplexity": math.inf, "more": 1e-12},
    ]
    write_table(tmp_path / "table.csv", rows)
    rows_read = read_table(tmp_path / "table.csv")
    assert rows_read == [{**rows[0], "more": ""}, {**rows[1], "variant": ""}]
    assert [type(value) for value in rows_read[0].values()] == [str, int, float, str, str]


cells = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).map(lambda text: "t" + text),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=1))
def test_any_table_comes_back(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.csv", rows)
        rows_read = read_table(Path(folder) / "table.csv")
    assert rows_read == rows


def test_json_comes_back_and_half_of_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, 2.5, None, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, None, "ü"]}
    for broken in (b'{"a": [1,', b"\xff\xfe{"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"x\.json is not JSON"):
            read_json(path)


def test_a_files_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
