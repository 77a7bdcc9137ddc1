"""The whole pipeline on RedPajama-V1, fetched over HTTP from genuine rows laid out as upstream lays them out."""

import csv
import http.server
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard

from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json
from workspace import ROOT, copy_project, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SUBSETS = {
    "arxiv": "arxiv",
    "c4-rp": "c4",
    "cc": "common_crawl",
    "github": "github",
    "stackexchange": "stackexchange",
    "wiki": "wikipedia",
}
"""Folders of the genuine rows, and upstream's names."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def listing(shared: Path, tmp_path: Path) -> Iterator[str]:
    """Address of a urls.txt on loopback; the book that it lists has been withdrawn."""
    served = tmp_path / "served"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    address = f"http://127.0.0.1:{server.server_port}/redpajama-data-1T/v1.0.0"
    urls = [f"{address}/book/book.jsonl"]
    for folder, subset in SUBSETS.items():
        for path in sorted((shared / "data" / "redpajama_v1" / folder).glob("*.jsonl")):
            data, name = path.read_bytes(), f"{subset}/{path.name}"
            if subset == "common_crawl":
                data, name = zstandard.compress(data), f"{subset}/2023-06/{path.stem}.jsonl.zst"
            target = served / "redpajama-data-1T" / "v1.0.0" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            urls.append(f"{address}/{name}")
    (served / "redpajama-data-1T" / "v1.0.0" / "urls.txt").write_text("\n".join(urls) + "\n")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"{address}/urls.txt"
    server.shutdown()
    thread.join()


def test_the_pipeline_runs_on_redpajama_as_an_experiment(listing: str, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    overrides = ["experiment=smoke", "corpus=redpajama_v1", f"corpus.url={listing}", "corpus.long_tokens=4096"]
    completed = run(project, "dvc", "exp", "run", "--name", "redpajama", "-S", f"overrides.yaml:overrides={overrides}")
    assert completed.returncode == 0, completed.stdout
    assert re.findall(r"Running stage '(\w+)'", completed.stdout) == list(STAGES)
    shown = run(project, "dvc", "exp", "show", "--csv")
    assert shown.returncode == 0, shown.stdout
    (row,) = [row for row in csv.DictReader(shown.stdout.splitlines()) if row["Experiment"] == "redpajama"]
    assert row["overrides"] == str(overrides)
    headline = read_json(project / "results/metrics/report.json")
    assert {name: float(row[name]) for name in headline} == headline
    assert "book.jsonl is no longer published (HTTP 404); passed over" in completed.stdout
    card = json.loads((project / "results/tokens/card.json").read_text())
    assert card["corpus"] == "redpajama_v1"
    stores = {split: TokenStore(project / "results" / "tokens" / split) for split in ("train", "search", "test")}
    documents = sum(len(store) for store in stores.values())
    # 4,262 rows, of them 2 books; one row has no text, two are copies and one nearly is.
    assert card["rows"] == 4260
    assert card["rejected"] == {"empty text": 1}
    assert card["dropped"] == {"duplicate": 2, "near-duplicate": 1}
    assert documents + sum(card["rejected"].values()) + sum(card["dropped"].values()) == card["rows"]
    assert {subset for store in stores.values() for subset in store.subsets} == set(SUBSETS.values())
    names = [set(store.names) for store in stores.values()]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert "redpajama" in (project / "results/report.html").read_text().lower()
    assert (project / "results/model/model.safetensors").is_file()
