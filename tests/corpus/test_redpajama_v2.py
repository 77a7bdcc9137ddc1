"""RedPajama-V2 from a server on loopback: genuine texts in its layout, with signals and duplicates row by row."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from published import Published
from ropewalk.config import CorpusConfig
from ropewalk.corpus.documents import Document, Refused
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.quality import broken_rule, value_of
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.sources import find_shards
from ropewalk.corpus.split import SPLITS
from tiny_models import byte_tokenizer
from workspace import ROOT

SNAPSHOT = "2023-06"
RULES: dict[str, list[float | None]] = yaml.safe_load((ROOT / "conf/corpus/quality/gopher.yaml").read_text())


def lines(rows: list[Any]) -> bytes:
    return gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def signals_of(tag: str, number: int, text: str, url: str) -> dict[str, Any]:
    """Published signals of one document that follow from its text."""
    words, lines = text.split(), text.splitlines()
    whole = [0, len(text)]
    return {
        "id": f"{tag}.json.gz/{number}",
        "id_int": number,
        "metadata": {"url": url, "language": "en"},
        "quality_signals": {
            "ccnet_nlines": [[*whole, len(lines)]],
            "rps_doc_word_count": [[*whole, len(words)]],
            "rps_doc_mean_word_length": [[*whole, sum(map(len, words)) / max(1, len(words))]],
            "rps_doc_symbol_to_word_ratio": [[*whole, 0.0]],
            "rps_doc_frac_chars_top_2gram": [[*whole, None]],
            "rps_lines_start_with_bulletpoint": [[0, 1, float(line.startswith("•"))] for line in lines],
        },
    }


def publish(published: Published, tag: str, texts: list[str], copies: list[int]) -> None:
    documents = [{"raw_content": text, "url": f"http://{tag}/{n}", "digest": "x"} for n, text in enumerate(texts)]
    rows = [signals_of(tag, number, text, f"http://{tag}/{number}") for number, text in enumerate(texts)]
    published.files[f"/documents/{tag}.json.gz"] = lines(documents)
    published.files[f"/quality_signals/{tag}.signals.json.gz"] = lines(rows)
    out = io.BytesIO()
    ids = [f"{tag}.json.gz/{number}" for number in copies]
    table = pyarrow.table({"shard_id": [f"{tag}.json.gz"] * len(ids), "doc_id": ids, "digest": ["x"] * len(ids)})
    pyarrow.parquet.write_table(table, out)
    published.files[f"/duplicates/{tag}.duplicates.parquet"] = out.getvalue()


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    path = shared / "data" / "redpajama_v1" / "c4-rp" / "sample_c4-rp1.jsonl"
    return [json.loads(line)["text"] for line in path.open(encoding="utf-8")][:300]


@pytest.fixture
def v2(published: Published, texts: list[str]) -> Published:
    for number, bucket in enumerate(("head", "middle", "tail")):
        publish(published, f"{SNAPSHOT}/0000/en_{bucket}", texts[number * 100 :][:100], copies=[3, 50])
    heads = [f"{SNAPSHOT}/0000/en_{bucket}" for bucket in ("head", "middle")]
    published.files[f"/listings/en-{SNAPSHOT}-head_middle.txt"] = "\n".join(heads).encode()
    published.files[f"/listings/en-{SNAPSHOT}-tail.txt"] = f"{SNAPSHOT}/0000/en_tail\n".encode()
    return published


def config(v2: Published, **changes: Any) -> CorpusConfig:
    values: dict[str, Any] = {"name": "redpajama_v2", "url": v2.url, "snapshots": [SNAPSHOT], "quality": RULES}
    values |= {"salt": "", "long_tokens": 1000}
    return CorpusConfig(**{**values, **changes})


def read(shards: list[Shard]) -> tuple[list[Document], Counter[str], Counter[str]]:
    """(documents, rejected, dropped)."""
    rows = [row for shard in shards for _, row in shard.rows()]
    refused = [row for row in rows if isinstance(row, Refused)]
    return (
        [row for row in rows if isinstance(row, Document)],
        Counter(row.reason for row in refused if row.damaged),
        Counter(row.reason for row in refused if not row.damaged),
    )


def shards_of(config: CorpusConfig, folder: Path) -> list[Shard]:
    return find_shards(config, folder=folder, downloads=folder)


def test_documents_are_joined_with_signals_and_duplicates(v2: Published, texts: list[str], tmp_path: Path) -> None:
    documents, rejected, dropped = read(shards_of(config(v2), tmp_path))
    expected = [
        text
        for place, text in enumerate(texts[:200])
        if place % 100 not in (3, 50)
        and len(text.split()) >= 50
        and 3 <= sum(map(len, text.split())) / len(text.split()) <= 10
    ]  # fmt: skip
    assert [document.text for document in documents] == expected
    assert {document.subset for document in documents} == {"en_head", "en_middle"}
    assert not rejected
    assert dropped["duplicate by RedPajama-V2's list"] == 4
    assert dropped["rps_doc_word_count below 50"] > 10
    assert len(documents) + dropped.total() == 200


def test_the_whole_of_prepare_counts_what_rules_and_lists_leave_out(v2: Published, tmp_path: Path) -> None:
    corpus = config(v2, near_duplicates=0.8, min_long_documents=0)
    card = prepare_shards(
        shards_of(corpus, tmp_path),
        config=corpus,
        tokenizer=byte_tokenizer(),
        state=tmp_path / "state",
        folder=tmp_path / "tokens",
    )
    kept = sum(card[split]["documents"] for split in SPLITS)
    assert card["rows"] == 200 == kept + sum(card["dropped"].values())
    assert card["dropped"]["duplicate by RedPajama-V2's list"] == 4
    assert set(card["train"]["tokens_by_subset"]) == {"en_head", "en_middle"}


def test_the_tail_has_documents_only(v2: Published, texts: list[str], tmp_path: Path) -> None:
    documents, rejected, dropped = read(shards_of(config(v2, buckets=["tail"], quality={}), tmp_path))
    assert [document.text for document in documents] == texts[200:]
    assert not rejected + dropped
    assert v2.fetched() == [f"/documents/{SNAPSHOT}/0000/en_tail.json.gz"]


def test_only_what_is_asked_for_is_fetched(v2: Published, tmp_path: Path) -> None:
    shards = shards_of(config(v2, files=1, quality={}, drop_listed_duplicates=False), tmp_path)
    assert [shard.tag for shard in shards] == [f"{SNAPSHOT}/0000/en_head"]
    assert v2.fetched() == [f"/documents/{SNAPSHOT}/0000/en_head.json.gz"]


def test_one_url_is_in_one_split_whatever_its_snapshot(v2: Published, tmp_path: Path) -> None:
    documents, _, _ = read(shards_of(config(v2), tmp_path))
    assert all(document.group.startswith("http://") for document in documents)
    assert len({document.name for document in documents}) == len(documents)


@pytest.mark.parametrize("lost", [0, 40, 99])
def test_a_lost_row_of_signals_costs_one_document(v2: Published, texts: list[str], tmp_path: Path, lost: int) -> None:
    tag = f"{SNAPSHOT}/0000/en_head"
    rows = [signals_of(tag, n, text, f"http://{tag}/{n}") for n, text in enumerate(texts[:100])]
    whole, _, _ = read(shards_of(config(v2, files=1), tmp_path / "whole"))
    del rows[lost]
    v2.files[f"/quality_signals/{tag}.signals.json.gz"] = lines(rows)
    documents, rejected, _ = read(shards_of(config(v2, files=1), tmp_path / "lost"))
    assert rejected == {"no quality signals": 1}
    left_out = f"{tag}.json.gz/{lost}"
    assert documents == [document for document in whole if document.name != left_out]


def test_signals_of_other_documents_are_never_used(v2: Published, texts: list[str], tmp_path: Path) -> None:
    tag = f"{SNAPSHOT}/0000/en_head"
    moved = [signals_of(tag, n, text, f"http://{tag}/{n + 1}") for n, text in enumerate(texts[:100])]
    v2.files[f"/quality_signals/{tag}.signals.json.gz"] = lines(moved)
    documents, rejected, _ = read(shards_of(config(v2, files=1), tmp_path / "moved"))
    assert not documents
    assert rejected == {"quality signals of another document": 98}
    other = [signals_of(f"{SNAPSHOT}/0001/en_head", n, text, "") for n, text in enumerate(texts[:100])]
    v2.files[f"/quality_signals/{tag}.signals.json.gz"] = lines(other)
    with pytest.raises(ValueError, match=r"is out of step with its documents: .*fetch both files again"):
        read(shards_of(config(v2, files=1), tmp_path / "other"))


def test_a_list_of_duplicates_that_is_none_is_named(v2: Published, tmp_path: Path) -> None:
    v2.files[f"/duplicates/{SNAPSHOT}/0000/en_head.duplicates.parquet"] = b"PAR1 not really"
    with pytest.raises(ValueError, match=r"duplicates\.parquet is no list of duplicates"):
        read(shards_of(config(v2), tmp_path))


@pytest.mark.parametrize("tag", ["../../x/en_head", "a/b", "/etc/0000/en_head", "2023-06/../en_head", "a/.b/en_head"])
def test_a_tag_never_leads_out_of_the_folder(v2: Published, tmp_path: Path, tag: str) -> None:
    v2.files[f"/listings/en-{SNAPSHOT}-head_middle.txt"] = tag.encode()
    with pytest.raises(ValueError, match="which is not of the form SNAPSHOT/NUMBER/NAME"):
        shards_of(config(v2), tmp_path)


def test_a_snapshot_that_is_not_there_is_named(v2: Published, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"the listing .*en-1999-01-head_middle\.txt cannot be fetched: HTTP 404"):
        shards_of(config(v2, snapshots=["1999-01"]), tmp_path)
    v2.files[f"/listings/en-{SNAPSHOT}-head_middle.txt"] = b"\n"
    with pytest.raises(ValueError, match=r"lists no file of corpus\.buckets"):
        shards_of(config(v2), tmp_path)


def test_rules_are_those_of_the_readme_of_v2() -> None:
    """As its example `gopher_rules_pass` has them."""

    def passes(**values: Any) -> bool:
        good: dict[str, Any] = {
            "rps_doc_word_count": 500, "rps_doc_mean_word_length": 5.0, "rps_doc_symbol_to_word_ratio": 0.05,
            "rps_doc_frac_chars_top_2gram": 0.1, "ccnet_nlines": 10,
        }  # fmt: skip
        bullets = values.pop("bullets", 2)
        signals = {name: [[0, 1, value]] for name, value in {**good, **values}.items()}
        signals["rps_lines_start_with_bulletpoint"] = [[n, n + 1, 1.0 if n < bullets else 0.0] for n in range(10)]
        return broken_rule(signals, RULES) is None

    assert passes()
    assert passes(rps_doc_word_count=50)
    assert not passes(rps_doc_word_count=49)
    assert not passes(rps_doc_word_count=100_001)
    assert not passes(rps_doc_mean_word_length=2.9)
    assert not passes(rps_doc_mean_word_length=10.1)
    assert not passes(rps_doc_symbol_to_word_ratio=0.11)
    assert passes(bullets=9)
    assert not passes(bullets=10)
    assert not passes(rps_doc_frac_chars_top_2gram=0.21)
    assert passes(rps_doc_frac_chars_top_2gram=None)


def test_a_signal_without_a_value_breaks_no_rule() -> None:
    assert value_of("a", {}) is None
    assert value_of("a", {"a": []}) is None
    assert value_of("a", {"a": [[0, 1, None]]}) is None
    assert broken_rule({}, {"a": [1, 2]}) is None
