"""JSON lines at an S3 address: a real server on this machine."""

import json
from pathlib import Path

import pytest
import zstandard

from ropewalk.config import CorpusConfig
from ropewalk.corpus.shards import read_documents
from ropewalk.corpus.sources import find_shards


@pytest.mark.slow
def test_json_lines_are_read_from_s3(s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_store)
    for part in range(2):
        rows = "".join(json.dumps({"text": f"row {part}-{number}"}) + "\n" for number in range(3))
        body = zstandard.compress(rows.encode())
        client.put_object(Bucket="bucket", Key=f"data/rows-{part}.jsonl.zst", Body=body)
    client.put_object(Bucket="bucket", Key="data/other.jsonl", Body=b'{"text": "not asked for"}\n')
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_store)
    corpus = CorpusConfig(name="jsonl", path="s3://bucket/data/rows-*.jsonl.zst")
    texts = [document.text for document in read_documents(find_shards(corpus, folder=tmp_path, downloads=tmp_path))]
    assert texts == [f"row {part}-{number}" for part in range(2) for number in range(3)]
