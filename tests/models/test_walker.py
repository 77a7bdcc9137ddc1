"""The walker: its tokenizer, and a training from text to a folder that is loaded like any checkpoint."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import kill_self, run_until_killed
from ropewalk.config import Config, CorpusConfig, WalkerConfig
from ropewalk.corpus.segments import Segments
from ropewalk.files import read_json
from ropewalk.models import walker as walker_module
from ropewalk.models.base import describe, load_model, load_tokenizer, window_of
from ropewalk.models.walker import VOCABULARY, WINDOW, make_walker, new_walker, train_tokenizer

KILLED = """
import sys
from pathlib import Path
from models.test_walker import walker
walker(Path(sys.argv[1]), steps=int(sys.argv[2]), kill_at=int(sys.argv[3]))
"""


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "def for if in or the to val".split() for b in ("", "_x", "s", " = 12", "(y)")]
    return [" ".join(rng.choice(words, 900)) + "\n" for _ in range(24)]


def walker(folder: Path, *, steps: int, kill_at: int = -1, asked: list[int] | None = None) -> dict[str, Any]:
    """Make a walker on 24 small texts, or kill the process when it asks for the rows of step ``kill_at``."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts()):
        path = folder / "texts" / f"{number}.txt"
        if not path.exists():
            path.write_text(text)
    corpus = CorpusConfig(
        name="text", path=str(folder / "texts"), search_share=0.3, test_share=0.3, least_long_documents=0
    )
    config = Config(
        seed=1,
        output=str(folder / "results"),
        corpus=corpus,
        walker=WalkerConfig(cycles=[steps], rows=1, precision="32-true"),
    )
    original, checkpoint = Segments.step, walker_module.ModelCheckpoint

    def watched(segments: Segments, step: int) -> torch.Tensor:
        if step == kill_at:
            kill_self()
        if asked is not None:
            asked.append(step)
        return original(segments, step)

    Segments.step = watched  # type: ignore[method-assign]
    # Every four steps in place of every 500.
    walker_module.ModelCheckpoint = lambda *a, **k: checkpoint(*a, **{**k, "every_n_train_steps": 4})  # type: ignore
    try:
        return make_walker(config, state_folder=folder / "state", folder=folder / "walker")
    finally:
        Segments.step = original  # type: ignore[method-assign]
        walker_module.ModelCheckpoint = checkpoint  # type: ignore[misc]


@cache
def made_tokenizer() -> Any:
    return train_tokenizer(texts())


@pytest.fixture
def tokenizer() -> Any:
    return made_tokenizer()


def test_the_tokenizer_has_at_most_1024_entries(tokenizer: Any) -> None:
    assert len(tokenizer) <= VOCABULARY == 1024
    ids = tokenizer("def x", add_special_tokens=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id is not None


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    own = made_tokenizer()
    ids = own(text, add_special_tokens=False)["input_ids"]
    assert own.decode(ids, skip_special_tokens=False) == text or "<s>" in text or "</s>" in text
    assert max(ids, default=0) < len(own)


def test_the_walker_has_at_most_3_million_parameters_and_16_rotary_pairs(tokenizer: Any) -> None:
    model = new_walker(tokenizer, seed=0)
    found = describe(model, name="walker", path="", original_length=None)
    assert found.parameters <= 3_000_000
    assert found.rotary_dim // 2 >= 16
    assert found.original_length == WINDOW == 256
    again, other = new_walker(tokenizer, seed=0), new_walker(tokenizer, seed=1)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_a_walker_is_made_from_text_to_a_checkpoint(tmp_path: Path) -> None:
    record = walker(tmp_path, steps=3)
    folder = tmp_path / "walker"
    assert window_of(str(folder)) == WINDOW
    weights = folder / "model.safetensors"
    assert weights.stat().st_size <= 8 * 2**20
    stored = load_model(str(folder))
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(str(folder), dtype="float16").parameters()} == {torch.float16}
    for parameter in stored.parameters():
        assert torch.equal(parameter, parameter.half().float())
    assert len(load_tokenizer(str(folder))) <= VOCABULARY
    assert read_json(folder / "training.json") == record
    assert record["training"]["cycles"] == [3]
    assert record["test_perplexity_256"] < 2 * VOCABULARY
    assert record["parameters"] == stored.num_parameters()
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".ckpt")]


def test_a_walker_killed_in_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    expected = walker(tmp_path / "undisturbed", steps=10)
    run_until_killed(KILLED, tmp_path / "killed", 10, 6)
    assert (tmp_path / "killed" / "state" / "last.ckpt").is_file()
    assert not (tmp_path / "killed" / "walker").exists()
    asked: list[int] = []
    found = walker(tmp_path / "killed", steps=10, asked=asked)
    assert asked == [4, 5, 6, 7, 8, 9]
    assert found["test_perplexity_256"] == expected["test_perplexity_256"]
    a, b = (load_model(str(tmp_path / name / "walker")).state_dict() for name in ("undisturbed", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
