"""The whole of prepare: what is kept, dropped and counted; the same bytes after any interruption."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from transformers import AutoTokenizer

from processes import fork, start
from ropewalk.config import CorpusConfig, SourceConfig
from ropewalk.corpus import parts as parts_module
from ropewalk.corpus import prepare as prepare_module
from ropewalk.corpus.mixture import quotas
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.progress import PrepareProgress
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.shards import read_documents
from ropewalk.corpus.sources import evaluation_shards, find_shards, fingerprint
from ropewalk.corpus.split import SPLITS, split_of
from ropewalk.corpus.store import TokenStore
from ropewalk.files import locked
from workspace import ROOT

WALKER = ROOT / "models" / "walker"
SMALL_DISK = "1m"
FEW: dict[str, Any] = {"min_long_documents": 0, "long_tokens": 1000}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(WALKER)


def config(path: Path | str = "", **changes: Any) -> CorpusConfig:
    values: dict[str, Any] = {"name": "jsonl", "path": str(path), "salt": "", **FEW}
    return CorpusConfig(**{**values, **changes})


def prepare(config: CorpusConfig, folder: Path, tokenizer: Any, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return prepare_shards(
        find_shards(config, folder=folder, downloads=folder),
        evaluation=evaluation_shards(config),
        config=config,
        tokenizer=tokenizer,
        state=folder / "state",
        folder=folder / "tokens",
        **more,
    )


def stores(folder: Path) -> dict[str, TokenStore]:
    return {split: TokenStore(folder / "tokens" / split) for split in SPLITS}


def kept(folder: Path) -> dict[str, str]:
    """The split of every document that was kept."""
    return {name: split for split, store in stores(folder).items() for name in store.names}


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below the results."""
    root = folder / "tokens"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def words(seed: int, count: int = 200) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 100_000, count))


def row(number: int, text: str | None = None) -> dict[str, Any]:
    return {"text": words(number) if text is None else text, "meta": {"url": f"http://a.org/{number}"}}


def group_in(split: str, start: int = 0) -> int:
    """A number whose row falls into a split."""
    return next(
        number
        for number in range(start, start + 1000)
        if split_of(f"http://a.org/{number}", search_share=0.15, test_share=0.15, salt="") == split
    )


def test_the_stores_of_a_small_corpus_never_change(tmp_path: Path, tokenizer: Any) -> None:
    """Hashes written down before prepare worked in parts; committed models name such hashes as their data."""
    rows = [
        {
            "text": f"def f{n}(a):\n    return a * {n}  # {'rope ' * (n % 7)}\n" * (n + 1),
            "meta": {"source": "stdlib", "name": f"stdlib/{n}", "part": 0},
        }
        for n in range(40)
    ]  # fmt: skip
    write_rows(tmp_path / "a.jsonl", rows)
    corpus = config(tmp_path / "a.jsonl", salt="42")
    card = prepare(corpus, tmp_path / "one", tokenizer)
    assert {split: card[split]["hash"][:16] for split in SPLITS} == BEFORE


BEFORE = {"train": "8564db04a958ed1a", "search": "bd9336903cd88414", "test": "36b11483ced3244a"}


@pytest.mark.slow
def test_the_embedded_corpus_is_what_the_embedded_model_was_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    record = json.loads((WALKER / "training.json").read_text())
    corpus = CorpusConfig(name="stdlib", salt="42", **FEW)
    if fingerprint(corpus) != record["corpus"]["fingerprint"]:
        pytest.skip("another Python than the embedded model was trained under")
    card = prepare(corpus, tmp_path, tokenizer)
    assert card["train"]["hash"] == record["data_hash"]
    assert {split: card[split]["tokens"] for split in SPLITS} == record["tokens"]


def test_subsets_that_rows_name_are_counted_weighted_and_drawn(tmp_path: Path, tokenizer: Any) -> None:
    names = ["news", "law (en)", "\ud83d", *(f"s{number}" for number in range(20))]
    rows = [{**row(number), "domain": names[number % len(names)]} for number in range(20 * len(names))]
    write_rows(tmp_path / "a.jsonl", rows)
    weights = {"news": 0.75, "law (en)": 0.25}
    card = prepare(config(tmp_path / "a.jsonl", subset_field="domain", weights=weights), tmp_path, tokenizer)
    tokens = card["train"]["tokens_by_subset"]
    assert tokens.keys() == weights.keys()
    assert tokens["news"] == pytest.approx(3 * tokens["law (en)"], abs=3)
    named = {subset for split in SPLITS for subset in card[split]["tokens_by_subset"]}
    assert named == {"\\ud83d" if name == "\ud83d" else name for name in names}
    assert (tmp_path / "tokens" / "card.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def genuine(shared: Path) -> str:
    """Some genuine rows of four subsets, in four files of 2.5 MB together."""
    return str(shared / "data" / "redpajama_v1" / "[acgw][rciC]*" / "*1.jsonl")


@pytest.mark.slow
def test_all_genuine_rows_are_kept_or_counted(shared: Path, tmp_path: Path, tokenizer: Any) -> None:
    genuine = shared / "data" / "redpajama_v1" / "*" / "*.jsonl"
    card = prepare(config(genuine, near_duplicates=0.8, min_tokens=20), tmp_path, tokenizer)
    documents = sum(card[split]["documents"] for split in SPLITS)
    assert card["rows"] == 4262 == documents + sum(card["rejected"].values()) + sum(card["dropped"].values())
    assert card["rejected"] == {"empty text": 1}
    assert set(card["dropped"]) <= {"too short", "duplicate", "near-duplicate"}
    [line] = (tmp_path / "tokens" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "empty text"
    assert "arxiv" in json.loads(line)["file"]
    for split, store in stores(tmp_path).items():
        by_subset = card[split]["documents_from_tokens_by_subset"]
        assert sum(sum(by_length.values()) for by_length in by_subset.values()) == len(store)
        assert card[split]["tokens"] == store.lengths.sum()
        assert store.lengths.min() >= 20
    assert (tmp_path / "tokens" / "card.png").read_bytes().startswith(b"\x89PNG")
    names = kept(tmp_path)
    assert len(names) == documents


def test_workers_and_parts_change_nothing(
    genuine: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = config(genuine, near_duplicates=0.8, workers=1)
    prepare(corpus, tmp_path / "one", tokenizer)
    monkeypatch.setattr(prepare_module, "_WORTH_A_WORKER", 0)
    prepare(config(genuine, near_duplicates=0.8, workers=3), tmp_path / "many", tokenizer)
    assert content(tmp_path / "one") == content(tmp_path / "many")
    monkeypatch.setattr(parts_module, "PART_BYTES", 100_000)
    prepare(corpus, tmp_path / "parts", tokenizer)
    assert len(list((tmp_path / "parts" / "state" / "parts").iterdir())) > 10
    assert content(tmp_path / "one") == content(tmp_path / "parts")


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    genuine: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART_BYTES", 100_000)
    corpus = config(genuine, near_duplicates=0.8, workers=1)
    folder, kills = tmp_path / "killed", 0

    def marks() -> int:
        return len(list(folder.glob("state/*/[0-9]*/part.json")))

    for wanted in (3, 12, 32):
        process = fork(lambda: prepare(corpus, folder, tokenizer))
        while marks() < wanted and process.is_alive():
            time.sleep(0.002)
        kills += process.is_alive()
        process.kill()
        process.join(60)
    process = fork(lambda: prepare(corpus, folder, tokenizer))
    process.join(300)
    assert process.exitcode == 0
    assert kills >= 2
    prepare(corpus, tmp_path / "whole", tokenizer)
    assert content(folder) == content(tmp_path / "whole")
    assert not [path for path in folder.rglob("*") if ".writing-" in path.name]


def test_workers_end_with_the_process_that_started_them(
    genuine: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_WORTH_A_WORKER", 0)
    process = fork(lambda: prepare(config(genuine, near_duplicates=0.8, workers=2), tmp_path / "run", tokenizer))
    children: list[int] = []
    while not children and process.is_alive():
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.join(60)
    assert children
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_tells_what_is_wrong_with_a_file(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_WORTH_A_WORKER", 0)
    for number in range(3):
        write_rows(tmp_path / f"{number}.jsonl", [row(number * 100 + place) for place in range(50)])
    data = zstandard.compress((tmp_path / "1.jsonl").read_bytes())
    (tmp_path / "1.jsonl").unlink()
    (tmp_path / "1.jsonl.zst").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"1\.jsonl\.zst cannot be decompressed .* fetch the file again"):
        prepare(config(tmp_path / "*.jsonl*", workers=2), tmp_path / "run", tokenizer)
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("a.jsonl.gz", lambda data: gzip.compress(data)[:-30], "cannot be decompressed"),
        ("a.jsonl.zst", lambda data: zstandard.compress(data)[:-30], "cannot be decompressed"),
        ("a.jsonl", lambda data: data[:-30], "is cut off in row"),
        ("a.jsonl", lambda data: b"", "is empty"),
        ("a.jsonl.gz", lambda data: gzip.compress(b""), "holds no rows"),
        ("a.jsonl.zst", lambda data: zstandard.compress(b""), "holds no rows"),
    ],
)
def test_a_shard_that_is_not_whole_stops_the_run(
    tmp_path: Path, tokenizer: Any, name: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    write_rows(tmp_path / "rows", [row(number) for number in range(50)])
    (tmp_path / name).write_bytes(damage((tmp_path / "rows").read_bytes()))
    with pytest.raises(ValueError, match=reason):
        prepare(config(tmp_path / name), tmp_path / "run", tokenizer)


def damaged_rows() -> bytes:
    good = b"".join(json.dumps(row(number)).encode() + b"\n" for number in range(60))
    return (
        good + b'{"text": "cut"\n' + b'{"meta": {}}\n' + b'{"text": null}\n' + b'{"text": "caf\xe9"}\n'
        + b'{"text": "half \\ud83d"}\n' + json.dumps(row(5, "another text under a known id")).encode() + b"\n"
    )  # fmt: skip


def test_rejected_rows_are_counted_and_kept_in_a_side_file(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(damaged_rows())
    card = prepare(config(tmp_path / "a.jsonl"), tmp_path / "run", tokenizer)
    expected = {
        "malformed JSON": 1, "no text": 2, "not UTF-8": 1, "text with lone surrogates": 1, "duplicate id": 1,
    }  # fmt: skip
    assert card["rejected"] == expected
    rows = [json.loads(line) for line in (tmp_path / "run" / "tokens" / "rejected.jsonl").read_text().splitlines()]
    assert Counter(row["reason"] for row in rows) == expected
    assert [row["row"] for row in rows if "row" in row] == [61, 62, 63, 64, 65]
    assert rows[3]["start"].startswith('{"text": "caf\\xe9"}')
    assert rows[-1]["name"] == "http://a.org/5"


def test_too_large_a_share_of_rejected_rows_stops_the_run(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(damaged_rows())
    with pytest.raises(ValueError, match=r"6 of 66 rows were rejected .*corpus.max_rejected_share 0.08"):
        prepare(config(tmp_path / "a.jsonl", max_rejected_share=0.08), tmp_path / "run", tokenizer)
    with pytest.raises(ValueError, match=r"5 of 66 rows were rejected .*rejected\.jsonl") as raised:
        prepare(config(tmp_path / "a.jsonl", max_rejected_share=0.05), tmp_path / "other", tokenizer)
    listed = list((tmp_path / "other" / "state" / "parts").glob("*/rejected.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in listed) == 5
    assert str(listed[0].parent.parent) in str(raised.value)


def test_copies_are_dropped_and_what_is_measured_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    train, search, test = (group_in(split) for split in SPLITS)
    other = group_in("train", train + 1)
    near = words(3, 400)
    rows = [
        row(train, words(1)), row(search, words(1)), row(test, words(1)),
        row(other, near), row(group_in("test", test + 1), near.replace("w", "W", 1) + " one two three"),
        row(group_in("search", search + 1), words(4)), row(group_in("train", other + 1), words(4)),
        row(group_in("train", other + 50), words(5)), row(group_in("train", other + 60), words(5)),
    ]  # fmt: skip
    write_rows(tmp_path / "a.jsonl", rows)
    card = prepare(config(tmp_path / "a.jsonl", near_duplicates=0.8), tmp_path / "run", tokenizer)
    assert card["dropped"] == {"duplicate": 4, "near-duplicate": 1}
    names = kept(tmp_path / "run")
    assert names[f"http://a.org/{test}"] == "test"
    assert f"http://a.org/{train}" not in names
    assert f"http://a.org/{other}" not in names
    assert Counter(names.values()) == {"test": 2, "search": 1, "train": 1}
    exact = prepare(config(tmp_path / "a.jsonl"), tmp_path / "exact", tokenizer)
    assert exact["dropped"] == {"duplicate": 4}
    all_kept = prepare(config(tmp_path / "a.jsonl", exact_duplicates=False), tmp_path / "all", tokenizer)
    assert not all_kept["dropped"]
    assert len(kept(tmp_path / "all")) == len(rows)


def test_comparing_in_passes_changes_nothing(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [words(number % 37, 150) + f" {number % 3}" for number in range(200)]
    write_rows(tmp_path / "a.jsonl", [row(number, text) for number, text in enumerate(texts)])
    corpus = config(tmp_path / "a.jsonl", near_duplicates=0.7)
    card = prepare(corpus, tmp_path / "one", tokenizer)
    assert card["dropped"] == {"duplicate": 200 - 111, "near-duplicate": 111 - 37}
    monkeypatch.setattr("ropewalk.corpus.duplicates.PASS_DOCUMENTS", 30)
    prepare(corpus, tmp_path / "passes", tokenizer)
    assert content(tmp_path / "one") == content(tmp_path / "passes")


def test_what_overlaps_an_evaluation_set_is_not_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "sets").mkdir()
    write_rows(tmp_path / "sets" / "quiz.jsonl", [{"question": words(9, 40)}])
    train, test = group_in("train"), group_in("test")
    rows = [row(train, f"so {words(9, 40)} it is"), row(test, f"and {words(9, 40)} again"), row(train + 999)]
    write_rows(tmp_path / "a.jsonl", rows)
    corpus = config(
        tmp_path / "a.jsonl", evaluation_sets=[str(tmp_path / "sets" / "*.jsonl")], evaluation_field="question"
    )
    card = prepare(corpus, tmp_path / "run", tokenizer)
    assert card["dropped"] == {"overlaps an evaluation set": 1}
    assert f"http://a.org/{train}" not in kept(tmp_path / "run")
    assert kept(tmp_path / "run")[f"http://a.org/{test}"] == "test"


def test_short_documents_are_dropped_by_subset(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"text": words(n, 5 + n), "meta": {"source": "c4" if n % 2 else "stackexchange", "url": str(n)}}
        for n in range(80)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    corpus = config(tmp_path / "a.jsonl", min_tokens=100, min_tokens_by_subset={"c4": 250})
    card = prepare(corpus, tmp_path / "run", tokenizer)
    lengths = {
        str(n): len(tokenizer(own_row["text"], add_special_tokens=False)["input_ids"]) for n, own_row in enumerate(rows)
    }
    expected = {name for name, length in lengths.items() if length >= (250 if int(name) % 2 else 100)}
    assert set(kept(tmp_path / "run")) == expected
    assert card["dropped"] == {"too short": 80 - len(expected)}


def test_adding_data_keeps_every_split(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row(number) for number in range(120)]
    write_rows(tmp_path / "a.jsonl", rows[:80])
    prepare(config(tmp_path / "a.jsonl"), tmp_path / "one", tokenizer)
    write_rows(tmp_path / "0.jsonl", rows[80:])
    prepare(config(tmp_path / "*.jsonl"), tmp_path / "more", tokenizer)
    before, after = kept(tmp_path / "one"), kept(tmp_path / "more")
    assert before == {name: split for name, split in after.items() if name in before}
    assert len(after) == 120


def test_fields_of_other_names_and_an_fsspec_address(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"body": {"content": words(n)}, "key": n} for n in range(30)]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    corpus = config(f"file://{tmp_path}/*.json.gz", text_field="body.content", id_field="key")
    prepare(corpus, tmp_path / "run", tokenizer)
    assert set(kept(tmp_path / "run")) == {str(n) for n in range(30)}


def test_rows_are_read_over_http(tmp_path: Path, tokenizer: Any, published: Any) -> None:
    published.files["/a.jsonl"] = "".join(json.dumps(row(n)) + "\n" for n in range(30)).encode()
    prepare(config(f"{published.url}/a.jsonl"), tmp_path / "run", tokenizer)
    assert len(kept(tmp_path / "run")) == 30


@pytest.mark.parametrize("weights", [{"web": 0.25, "books": 0.75}, {"web": 1.0, "books/other": 2.0}])
def test_a_mixture_is_exact_in_tokens(tmp_path: Path, tokenizer: Any, weights: dict[str, float]) -> None:
    write_rows(tmp_path / "web.jsonl", [row(n) for n in range(60)])
    write_rows(tmp_path / "books.jsonl", [row(n, words(n + 500, 500)) for n in range(30)])
    sources = {name: SourceConfig(name="jsonl", path=str(tmp_path / f"{name}.jsonl")) for name in ("web", "books")}
    corpus = CorpusConfig(name="mixture", sources=sources, weights=weights, salt="", **FEW)
    card = prepare(corpus, tmp_path / "run", tokenizer)
    by_subset = card["train"]["tokens_by_subset"]
    share = sum(weights.values())
    for pool, weight in weights.items():
        tokens = sum(subset_tokens for subset, subset_tokens in by_subset.items() if subset.startswith(pool))
        assert tokens == pytest.approx(card["train"]["tokens"] * weight / share, abs=1)
    less = prepare(CorpusConfig(**{**vars(corpus), "mixture_tokens": 5000}), tmp_path / "less", tokenizer)
    assert less["train"]["tokens"] == 5000
    assert less["dropped"]["beyond its share of the mixture"] > 0
    with pytest.raises(ValueError, match=r"corpus.mixture_tokens 99999999 needs .* at most \d+ can be mixed"):
        prepare(CorpusConfig(**{**vars(corpus), "mixture_tokens": 99_999_999}), tmp_path / "much", tokenizer)


def test_quotas_use_up_the_scarcest_and_round_to_the_whole() -> None:
    assert quotas({"a": 100, "b": 1000}, {"a": 1, "b": 1}, tokens=None) == {"a": 100, "b": 100}
    assert quotas({"a": 100, "b": 1000, "c": 7}, {"a": 1, "b": 3, "c": 0}, tokens=None) == {"a": 100, "b": 300, "c": 0}
    thirds = quotas({"a": 900, "b": 900, "c": 900}, {"a": 1, "b": 1, "c": 1}, tokens=100)
    assert sum(thirds.values()) == 100
    assert sorted(thirds.values()) == [33, 33, 34]
    with pytest.raises(ValueError, match=r"corpus\.weights names d, of which there is no training document"):
        quotas({"a": 1}, {"a": 1, "d": 1}, tokens=None)


def test_the_bar_tells_documents_tokens_speed_time_left_and_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with PrepareProgress(3_000_000) as bar:
        time.sleep(0.01)
        bar.read({"documents": 1200, "rejected": {"no text": 3, "empty text": 1}, "read": 3_000_000})
        bar.begin_tokenising(5_000_000)
        bar.tokenised({"tokens": {"train": 70_000, "search": 0, "test": 30_000}, "text_bytes": 2_000_000})
        bar._bar.refresh()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    pattern = (
        r"tokenising: +62%\|.*\| 5\.00M/8\.00M \[\d\d:\d\d<\d\d:\d\d, .*MB/s, "
        r"1,200 documents, 100,000 tokens kept, 4 rejected\]"
    )
    assert re.fullmatch(pattern, lines[-1])


def test_an_address_that_no_library_opens_is_told_in_one_line(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"^corpus\.path nowhere://a/\*\.jsonl cannot be opened: Protocol not known"):
        prepare(config("nowhere://a/*.jsonl"), tmp_path / "run", tokenizer)


def test_a_disk_that_fills_while_reading_is_named_and_the_run_resumes(
    tmp_path: Path, tokenizer: Any, small_disk: Path
) -> None:
    write_rows(tmp_path / "a.jsonl", [row(n, words(n, 2000)) for n in range(100)])
    corpus = config(tmp_path / "a.jsonl")
    with pytest.raises(OSError, match=r"no space left on the disk of .*; free some and run the same command again"):
        prepare(corpus, small_disk / "run", tokenizer)
    assert not (small_disk / "run" / "tokens").exists()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    prepare(corpus, small_disk / "run", tokenizer)
    prepare(corpus, tmp_path / "whole", tokenizer)
    assert content(small_disk / "run") == content(tmp_path / "whole")


HOLD = """
import sys, time
from pathlib import Path
from ropewalk.files import locked
with locked(Path(sys.argv[1]), "prepare"):
    print("in", flush=True)
    time.sleep(60)
"""


def test_two_at_once_on_one_folder_are_told_apart(tmp_path: Path) -> None:
    other = start(HOLD, tmp_path / "results")
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    try:
        refused = pytest.raises(ValueError, match=r"another prepare is at work in .*results; wait until it has ended")
        with refused, locked(tmp_path / "results", "prepare"):
            pass
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path / "results", "prepare"):
        pass
    assert not list((tmp_path / "results").iterdir())


def test_the_first_batch_comes_at_once_from_a_large_store(tmp_path: Path) -> None:
    """Two million documents, of which a thousand are long."""
    folder, count = tmp_path / "store", 2_000_000
    folder.mkdir()
    lengths = np.full(count, 50)
    lengths[::2000] = 3000
    ends = np.cumsum(lengths)
    (folder / "tokens.bin").touch()
    os.truncate(folder / "tokens.bin", 2 * int(ends[-1]))
    np.save(folder / "ends.npy", ends)
    np.save(folder / "by_length.npy", np.argsort(-lengths, kind="stable"))
    about = {
        "bos": 0,
        "eos": 1,
        "vocab_size": 100,
        "dtype": "uint16",
        "hash": "x",
        "documents": count,
        "tokens": int(ends[-1]),
    }
    (folder / "store.json").write_text(json.dumps(about))
    tracemalloc.start()
    try:
        batch = Segments(TokenStore(folder), length=2048, batch_size=8, steps=5, seed=0).step(0).ids
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count  # bytes: nothing is computed for every document
    assert batch.shape == (8, 2048)
    assert TokenStore(folder).long_documents(3000).tolist() == np.flatnonzero(lengths >= 3000).tolist()


def test_texts_are_found_in_subfolders_and_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a=b c"
    for name in ("1.txt", "sub/1.txt", "sub/2.TXT", ".hidden/3.txt", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    def names(path: Path) -> list[str]:
        shards = find_shards(config(path, name="text"), folder=tmp_path, downloads=tmp_path)
        return [document.name for document in read_documents(shards)]

    assert names(folder) == ["1.txt", "sub/1.txt", "sub/2.TXT"]
    assert names(folder / "1.txt") == ["1.txt"]
    for path, message in (
        (tmp_path / "gone", "is not there; give a folder of .txt files"),
        (folder / ".hidden" / "none", "is not there"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            names(path)
    (tmp_path / "md").mkdir()
    with pytest.raises(FileNotFoundError, match=r"without \.txt files; it is empty"):
        names(tmp_path / "md")
    (tmp_path / "md" / "notes.md").write_text("notes")
    with pytest.raises(FileNotFoundError, match=r"it holds 1 others, such as notes\.md"):
        names(tmp_path / "md")


def test_json_lines_are_found_in_a_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [row(1)])
    (tmp_path / "b.txt").write_text("no row")
    [shard] = find_shards(config(tmp_path), folder=tmp_path, downloads=tmp_path)
    assert shard.path == str(tmp_path / "a.jsonl")
