"""The stage prepare as a program: two at once on one folder, killed in the middle of a download, resumed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from published import Published
from workspace import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARXIV = "/v1.0.0/arxiv/arxiv_1.jsonl"
STACK = "/v1.0.0/stackexchange/stackexchange.jsonl"


def stage(listing: str, folder: Path, output: str) -> subprocess.Popen[str]:
    arguments = (
        "experiment=smoke",
        "corpus=redpajama_v1",
        f"corpus.url={listing}",
        "corpus.long_tokens=4096",
        "corpus.min_long_documents=2",
        "corpus.download_timeout=600",
        f"output={output}",
    )
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / "prepare.py"), *arguments, f"work={output}-work"],
        cwd=folder,
        env={**environment(ROOT), "no_proxy": "127.0.0.1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore")
def test_two_at_once_are_told_apart_and_a_killed_one_ends_with_the_same_bytes(
    published: Published, shared: Path, scratch: Path
) -> None:
    paths = sorted((shared / "data" / "redpajama_v1").glob("*/*.jsonl"))
    rows = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    published.files[ARXIV] = b"".join(row for row in rows if 20_000 <= len(row) < 60_000)
    published.files[STACK] = b"".join(rows[-50:])
    published.list_files(published.url + ARXIV, published.url + STACK)
    published.slow[ARXIV] = 300
    first = stage(published.listing(), scratch, "results")
    part = ".arxiv_1.jsonl.part"
    while not any(path.stat().st_size for path in scratch.glob(f"results-work/**/{part}")) and first.poll() is None:
        time.sleep(0.05)
    second = stage(published.listing(), scratch, "results")
    _, stderr = second.communicate(timeout=300)
    assert second.returncode == 1
    assert stderr.splitlines()[-1].startswith("prepare: another prepare is at work in results; wait until it has ended")
    assert first.poll() is None
    first.kill()
    first.communicate()
    published.asked.clear()
    for output in ("results", "undisturbed"):
        whole = stage(published.listing(), scratch, output)
        _, stderr = whole.communicate(timeout=300)
        assert whole.returncode == 0, stderr
    # What had come was not fetched again.
    assert [wanted for path, wanted in published.asked if path == ARXIV] == [
        f"bytes={len(published.files[ARXIV]) // 2}-",
        None,
    ]
    assert content(scratch / "results" / "tokens") == content(scratch / "undisturbed" / "tokens")
    assert not list(scratch.glob("results-work/prepare/*"))
