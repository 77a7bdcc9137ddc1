"""Tokens of a long text in windows are those of the whole, whether its tokenizer knows words or not."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ropewalk.corpus.parts import ReadSettings, ReadTask, read_shard, whole_parts
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.split import TRAIN
from ropewalk.corpus.tokenise import TokenTask, _decoded, tokenise_part, windowed
from workspace import ROOT


@pytest.fixture(scope="module")
def novel(shared: Path) -> str:
    path = min((shared / "data" / "novels").glob("*.txt"), key=lambda file: file.stat().st_size)
    return path.read_text(encoding="utf-8")[:250_000]


@cache
def walker() -> Tokenizer:
    """Byte-level BPE with words, as GPT-2's and Llama 3's."""
    return Tokenizer.from_file(str(ROOT / "models" / "walker" / "tokenizer.json"))


@cache
def wordless(text: str) -> Tokenizer:
    """BPE over the whole text with a mark for spaces, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    # Trained on words, for speed; without a pre-tokenizer afterwards.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>"], show_progress=False)
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("kind", ["words", "no words"])
@pytest.mark.parametrize(
    ("window", "overlap", "piece"), [(20_000, 2000, 7001), (5000, 1000, 100_000), (60_000, 8192, 1)]
)
def test_windows_give_the_tokens_of_the_whole(novel: str, kind: str, window: int, overlap: int, piece: int) -> None:
    text = novel if piece > 1 else novel[:130_000]
    tokenizer = walker() if kind == "words" else wordless(novel)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    tokens_in_windows = list(windowed(iter(pieces(text, piece)), tokenizer, window=window, overlap=overlap))
    assert np.concatenate(tokens_in_windows).tolist() == whole
    assert len(tokens_in_windows) > len(text) // window


def test_a_text_of_one_window_is_its_tokens() -> None:
    tokenizer = walker()
    for text in ("", "a", "def f():\n    return 1\n"):
        tokens_in_windows = np.concatenate([np.zeros(0, np.uint32), *windowed(iter([text]), tokenizer)])
        assert tokens_in_windows.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_text_is_decoded_in_pieces_without_cutting_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropewalk.corpus.tokenise.WINDOW_CHARACTERS", 7)
    text = "aé绳😀" * 50
    (tmp_path / "text").write_bytes(b"before" + text.encode() + b"after")
    with (tmp_path / "text").open("rb") as source:
        source.seek(6)
        decoded = list(_decoded(source, len(text.encode())))
    assert "".join(decoded) == text
    assert len(decoded) > 50


def test_long_documents_stand_between_short_ones_in_order(
    tmp_path: Path, novel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropewalk.corpus.tokenise.LONG_CHARACTERS", 30_000)
    monkeypatch.setattr("ropewalk.corpus.tokenise._BATCH_CHARACTERS", 5000)
    texts = [novel[:1000], novel[1000:90_000], novel[90_000:90_100], novel[90_100:], "", novel[:10]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = ReadSettings()
    read_shard(ReadTask(Shard(str(tmp_path / "a.jsonl")), 0, str(tmp_path / "parts"), settings), lambda _: None)
    [part] = whole_parts(tmp_path / "parts")
    part.keep("splits", np.full(len(part), TRAIN, np.uint8))
    task = TokenTask(
        part=str(part.path), folder=str(tmp_path / "tokens"), tokenizer=str(ROOT / "models/walker/tokenizer.json"),
        dtype="uint16", min_tokens=20, min_tokens_by_subset={},
    )  # fmt: skip
    reported: list[dict[str, object]] = []
    tokenise_part(task, reported.append)
    tokenise_part(task, reported.append)
    assert reported[0] == reported[1]
    assert reported[0]["too short"] == 1
    expected = [walker().encode(text, add_special_tokens=False).ids for text in texts if len(text) > 10]
    assert np.load(task.target / "lengths.npy").tolist() == [len(ids) for ids in expected]
    stored = np.fromfile(task.target / "train.bin", np.uint16)
    assert stored.tolist() == [token for ids in expected for token in ids]
    assert json.loads((task.target / "part.json").read_text())["tokens"]["train"] == len(stored)
