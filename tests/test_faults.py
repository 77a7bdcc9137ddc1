"""Bad input and faults: one line that says what to do, exit code 1, and nothing half-written under a result's name."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import zstandard

from ropewalk.corpus.split import SEARCH, TEST, Shares
from ropewalk.corpus.sufficiency import SALTS
from ropewalk.files import read_json
from ropewalk.rope import RopeScaling, methods
from workspace import ROOT, run_script, write_overrides

SMALL = ("experiment=smoke", "corpus.long_tokens=4096", "corpus.min_long_documents=2")
WALKER = ROOT / "models" / "walker"


def rows(documents: int = 30, lines: int = 500) -> bytes:
    """JSON lines of documents with about ten tokens a line."""
    texts = ("".join(f"line {i} of {d} is {i * d % 97}\n" for i in range(lines)) for d in range(documents))
    made = [{"text": text, "meta": {"url": f"document-{number}"}} for number, text in enumerate(texts)]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, an MLflow store that need not be made again, and the results of prepare and base."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "corpus.jsonl").write_bytes(rows())
    (folder / "models").symlink_to(ROOT / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for stage in ("prepare", "base"):
            run_script(stage, *SMALL, "corpus=jsonl", "corpus.path=corpus.jsonl", "output=results")
    return folder


@pytest.fixture
def workspace(scratch: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a store for MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'mlflow.db'}")
    return scratch


def stops(stage: str, *overrides: str) -> str:
    """The one line that a stage ends with, below ``results``."""
    with pytest.raises(SystemExit) as raised:
        run_script(stage, *SMALL, "output=results", *overrides)
    # sys.exit with a text prints it and ends with code 1.
    message = raised.value.code
    assert isinstance(message, str)
    assert message.startswith(f"{stage}: ")
    assert len(message.splitlines()) == 1
    return message


def result_files(folder: Path) -> set[str]:
    """Everything below results/ but resumable state; half-written things would have a leading dot."""
    root = folder / "results"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "work" not in path.parts}


def test_a_corpus_that_is_not_there(workspace: Path) -> None:
    assert "corpus.path gone/*.jsonl matches no file" in stops("prepare", "corpus=jsonl", "corpus.path='gone/*.jsonl'")
    assert "corpus.path gone is not there; give a folder of .txt files" in stops(
        "prepare", "corpus=text", "corpus.path=gone"
    )
    write_overrides(workspace, "corpus=text", "corpus.path=gone")
    with pytest.raises(SystemExit) as raised:
        run_script("compose")
    assert raised.value.code == "compose: corpus.path gone is not there; give a folder of .txt files, or one of them"
    assert not result_files(workspace)
    assert not (workspace / "resolved.yaml").exists()


def test_a_listing_that_cannot_be_fetched(workspace: Path) -> None:
    url = "http://127.0.0.1:9/urls.txt"
    message = stops("prepare", "corpus=redpajama_v1", f"corpus.url={url}")
    assert f"the listing {url} cannot be fetched" in message
    assert not result_files(workspace)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_corpus_that_may_not_be_read(workspace: Path) -> None:
    path = workspace / "rows.jsonl"
    path.write_bytes(rows())
    path.chmod(0)
    assert "Permission denied" in stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cut.jsonl", "is cut off in row 30; fetch the file again"),
        ("cut.jsonl.gz", "cannot be decompressed"),
        ("cut.jsonl.zst", "cannot be decompressed"),
        ("noise.jsonl.zst", "cannot be decompressed"),
        ("empty.jsonl", "is empty; fetch the file again"),
        ("noise.jsonl", "holds no document with text"),
    ],
)
def test_a_shard_that_is_cut_off_or_unreadable(workspace: Path, name: str, part: str) -> None:
    data = rows()
    whole = {"gz": gzip.compress(data), "zst": zstandard.compress(data), "jsonl": data}[name.rpartition(".")[2]]
    contents = {"cut": whole[: len(whole) * 98 // 100], "empty": b"", "noise": b"\x93\n" * 99}
    (workspace / name).write_bytes(contents[name.partition(".")[0]])
    message = stops("prepare", "corpus=jsonl", f"corpus.path={name}")
    assert part in message
    assert not result_files(workspace)


def test_rows_without_text(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows() + b'{"meta": {}}\n' * 10 + b'{"text": ""}\n' * 5)
    message = stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl")
    assert "15 of 45 rows were rejected" in message
    assert "'no text': 10" in message
    assert "'empty text': 5" in message
    assert "corpus.max_rejected_share 0.1; mend the files or raise it" in message
    assert not result_files(workspace)


def test_documents_that_are_all_too_short(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows(lines=50))
    message = stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl")
    assert "the search and test splits each need 2 of at least 4096 tokens" in message
    assert "hold about 0 and 0" in message
    assert "they allow 256 tokens: lower extension.target until corpus.long_tokens" in message
    # Told before the corpus is tokenised.
    assert not list(workspace.rglob("tokens"))
    assert not result_files(workspace)


def test_documents_of_which_none_is_left_to_train_on(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows(documents=4))
    names = [f"document-{number}" for number in range(4)]
    shares = Shares(0.45, 0.45)
    salt = next(salt for salt in SALTS if sorted(shares.split(names, salt)) == [SEARCH, SEARCH, TEST, TEST])
    corpus = ("corpus=jsonl", "corpus.path=rows.jsonl", "corpus.search_share=0.45", "corpus.test_share=0.45")
    message = stops("prepare", *corpus, f"corpus.salt={salt}")
    assert "no document of at least 2046 tokens (corpus.train_tokens) is left to the training split" in message
    assert "the corpus has 4; add some, or change corpus.search_share, corpus.test_share or corpus.salt" in message
    assert not result_files(workspace)
    run_script("prepare", *SMALL, *corpus, f"corpus.salt={salt}", "corpus.train_tokens=0", "output=results")
    assert read_json(workspace / "results" / "tokens" / "card.json")["train"]["documents"] == 0


def test_a_corpus_that_changed_after_compose(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows())
    message = stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl", "corpus.fingerprint=other")
    assert "the corpus changed since the configuration was made" in message
    assert "dvc repro --force --single-item compose" in message


def test_a_checkpoint_that_is_not_there_or_not_whole(workspace: Path) -> None:
    assert "model.path gone is not there; give a folder" in stops("base", "model=hf", "model.path=gone")
    (workspace / "empty").mkdir()
    assert "model.path empty holds no config.json" in stops("base", "model=hf", "model.path=empty")
    shutil.copytree(WALKER, workspace / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "weightless holds no .safetensors weights" in stops("base", "model=hf", "model.path=weightless")
    shutil.copytree(WALKER, workspace / "cut")
    weights = workspace / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.path cut: model.safetensors is not a whole file of weights" in stops(
        "base", "model=hf", "model.path=cut"
    )
    write_overrides(workspace, "model=hf", "model.path=gone")
    with pytest.raises(SystemExit, match=r"compose: model\.path gone is not there; give a folder"):
        run_script("compose")
    assert not result_files(workspace)


def test_a_checkpoint_without_a_tokenizer(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows())
    shutil.copytree(WALKER, workspace / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    message = stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl", "model=hf", "model.path=mute")
    assert "model.path mute has no tokenizer that can be loaded" in message
    assert "save one beside it" in message
    assert not result_files(workspace)


def with_results(workspace: Path, base: Path, factors: str) -> set[str]:
    """The results of prepare and base, and a factor table; returns their names."""
    shutil.copytree(base / "results", workspace / "results", ignore=shutil.ignore_patterns("work"))
    (workspace / "results" / "factors").mkdir()
    (workspace / "results" / "factors" / "first.json").write_text(factors)
    return result_files(workspace)


@pytest.mark.parametrize(
    ("factors", "parts"),
    [
        (
            RopeScaling((1.0, 2.0, 3.0), 256, 2048).to_json(),
            ["found 3 rescale factors", "but the model has", "use factors made for this model"],
        ),
        ('{"factors": [1.0, ', ["results/factors/first.json: not a SearchedFactors in JSON"]),
        ('{"factors": [1.0, -2.0], "original_length": 256, "target_length": 2048}', ["must be positive numbers"]),
    ],
)
def test_a_factor_table_of_the_wrong_size_or_form(workspace: Path, base: Path, factors: str, parts: list[str]) -> None:
    before = with_results(workspace, base, factors)
    message = stops("finetune_first")
    assert all(part in message for part in parts), message
    assert result_files(workspace) == before


def test_an_input_that_is_not_there(workspace: Path) -> None:
    assert "results/base.json is not there; run the stage that makes it first" in stops("search_first")


SMALL_DISK = "1500k"


def test_a_disk_that_fills_while_tokens_are_written(workspace: Path, small_disk: Path) -> None:
    (workspace / "rows.jsonl").write_bytes(rows(documents=200))
    (workspace / "results").symlink_to(small_disk)
    message = stops("prepare", "corpus=jsonl", "corpus.path=rows.jsonl", "work=work")
    assert "no space left on the disk of results; free some and run the same command again" in message
    assert not result_files(small_disk.parent)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("full", ["results", "work"])
def test_a_disk_that_fills_while_a_model_is_written(workspace: Path, base: Path, small_disk: Path, full: str) -> None:
    rotary_dim = json.loads((base / "results" / "base.json").read_text())["rotary_dim"]
    factors = methods.pi(rotary_dim=rotary_dim, base=10_000.0, original_length=256, target_length=2048)
    before = with_results(workspace, base, factors.to_json())
    if full == "results":
        (workspace / "results" / "checkpoints").symlink_to(small_disk)
    else:
        (workspace / "work").symlink_to(small_disk)
    message = stops(
        "finetune_first", "work=work", "finetune.first.length=64", "finetune.first.steps=1",
        "finetune.first.batch_size=1", "finetune.checkpoint_every=1",
    )  # fmt: skip
    assert "no space left on the disk of " in message
    assert "free some and run the same command again" in message
    assert result_files(workspace) == before
    if full == "results":
        assert not list(small_disk.iterdir())


def test_a_disk_that_is_full_where_the_runs_are_kept(workspace: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(1_300_000))
    message = stops("base", f"tracking.uri=sqlite:///{small_disk / 'mlflow.db'}")
    assert message == "base: no space left on the disk; free some and run the same command again"
    assert not result_files(workspace)
