"""The embedded corpus under the running interpreter and every other that is found."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ropewalk.corpus.shards import Shard, read_documents
from ropewalk.corpus.split import split_of
from ropewalk.corpus.stdlib import LARGEST_SHARE, stdlib_folder, stdlib_hash, stdlib_modules, stdlib_rows

ROOT = Path(__file__).resolve().parents[2]
LONG_TOKENS = 16_384
CHARACTERS_PER_TOKEN = 3.2


def interpreters() -> list[Path]:
    """Standard libraries of this machine from Python 3.11 on: the running one, Debian's, those beside the running."""
    folders = [stdlib_folder(), *Path("/usr/lib").glob("python3.*")]
    folders += sorted(Path(sys.base_prefix).parent.glob("*/lib/python3.*"))
    whole = [folder.resolve() for folder in folders if (folder / "os.py").is_file()]
    return [folder for folder in dict.fromkeys(whole) if int(folder.name.partition(".")[2]) >= 11]


every_interpreter = pytest.mark.parametrize("folder", interpreters(), ids=str)


def split(group: str) -> str:
    return split_of(group, search_share=0.15, test_share=0.15, salt="42")


@every_interpreter
def test_no_document_is_above_2_percent(folder: Path) -> None:
    sizes = [len(row["text"]) for row in stdlib_rows(folder)]
    assert max(sizes) <= LARGEST_SHARE * sum(sizes)
    assert min(sizes) > 0


@every_interpreter
def test_search_and_test_each_hold_8_long_documents(folder: Path) -> None:
    walker = ROOT / "models" / "walker"
    tokenizer: Any = None
    if folder == stdlib_folder().resolve() and (walker / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(walker)
    long: Counter[str] = Counter()
    for row in stdlib_rows(folder):
        if (group_splits := split(row["meta"]["name"])) != "train":
            text = row["text"]
            tokens = len(text) / CHARACTERS_PER_TOKEN
            # A token has at least one character, so short texts need not be tokenised; nor what comes after enough.
            if tokenizer is not None and len(text) >= LONG_TOKENS and long[group_splits] < 8:
                tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            long[group_splits] += tokens >= LONG_TOKENS
    assert long["search"] >= 8
    assert long["test"] >= 8


@every_interpreter
def test_every_source_is_in_the_corpus_once(folder: Path) -> None:
    groups = stdlib_modules(folder)
    paths = [path for group in groups.values() for path in group]
    assert len(paths) == len(set(paths)) > 300
    texts: dict[str, str] = {}
    for row in stdlib_rows(folder):
        texts[row["meta"]["name"]] = texts.get(row["meta"]["name"], "") + row["text"]
    for group, members in groups.items():
        sources = [member.read_text(encoding="utf-8", errors="replace") for member in members]
        assert texts.get(group, "") == "\n\n".join(source for source in sources if source.strip())


def test_no_group_or_module_is_in_two_splits_under_any_interpreter() -> None:
    splits: dict[str, set[str]] = {}
    for folder in interpreters():
        for group, members in stdlib_modules(folder).items():
            for name in (group, *(member.relative_to(folder).as_posix() for member in members)):
                splits.setdefault(name, set()).add(split(group))
    assert all(len(group_splits) == 1 for group_splits in splits.values())


def test_test_packages_are_left_out() -> None:
    folder = stdlib_folder()
    for members in stdlib_modules(folder).values():
        for member in members:
            left_out = {"test", "tests", "site-packages", "dist-packages"}
            assert not left_out & set(member.relative_to(folder).parts[:-1])


def test_what_is_missing_elsewhere_does_not_change_the_rest(tmp_path: Path) -> None:
    for name in ("json", "asyncio", "test"):
        if (stdlib_folder() / name).is_dir():
            shutil.copytree(stdlib_folder() / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    before = stdlib_hash(tmp_path)
    groups = stdlib_modules(tmp_path)
    shutil.rmtree(tmp_path / "test", ignore_errors=True)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    assert set(stdlib_modules(tmp_path)) == set(groups) == {"stdlib/json", "stdlib/asyncio"}
    assert stdlib_hash(tmp_path) == before


def test_the_hash_changes_with_any_source(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = stdlib_hash(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = stdlib_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, stdlib_hash(tmp_path)}) == 3


def test_rows_go_through_the_reader_of_redpajama(tmp_path: Path) -> None:
    rows = stdlib_rows()
    path = tmp_path / "stdlib.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = list(read_documents([Shard(str(path))]))
    assert [document.text for document in documents] == [row["text"] for row in rows]
    assert [document.group for document in documents] == [row["meta"]["name"] for row in rows]
    assert len({document.name for document in documents}) == len(documents)
