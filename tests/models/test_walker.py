"""The walker: its tokenizer, and a training from text to a folder that is loaded like any checkpoint."""

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import run_until_killed, start
from ropewalk.config import Config, CorpusConfig, WalkerConfig
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.files import read_json
from ropewalk.models import walker as walker_module
from ropewalk.models.base import describe, load_model, load_tokenizer, window_before
from ropewalk.models.walker import VOCABULARY, WINDOW, make_walker, new_walker, train_tokenizer

KILLED = """
import sys
from pathlib import Path
from models.test_walker import walker
from processes import kill_self
walker(Path(sys.argv[1]), before_step=lambda step: kill_self() if step == 6 else None)
"""
SLOWLY = """
import sys, time
from pathlib import Path
from models.test_walker import walker
def before_step(step):
    print("step", step, flush=True)
    time.sleep(0 if step < 6 else 60)
try:
    walker(Path(sys.argv[1]), before_step=before_step)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "def for if in or the to val".split() for b in ("", "_x", "s", " = 12", "(y)")]
    return [" ".join(rng.choice(words, 900)) + "\n" for _ in range(24)]


def walker(folder: Path, *, steps: int = 10, before_step: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Make a walker on 24 small texts, with a checkpoint every four steps."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts()):
        path = folder / "texts" / f"{number}.txt"
        if not path.exists():
            path.write_text(text)
    corpus = CorpusConfig(
        name="text", path=str(folder / "texts"), search_share=0.3, test_share=0.3, salt=None,
        min_long_documents=0, long_tokens=1000,
    )  # fmt: skip
    config = Config(
        seed=1,
        output=str(folder / "results"),
        corpus=corpus,
        walker=WalkerConfig(cycles=[steps], learning_rates=[1e-3], batch_size=1, precision="32-true"),
    )
    original = Segments.step

    def watched(segments: Segments, step: int) -> Rows:
        before_step(step)
        return original(segments, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segments, "step", watched)
        patch.setattr(walker_module, "CHECKPOINT_EVERY", 4)
        return make_walker(config, commit="0" * 40, state_folder=folder / "state", folder=folder / "walker")


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
    tokenizer = made_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text or "<s>" in text or "</s>" in text
    assert max(ids, default=0) < len(tokenizer)


def test_the_walker_has_at_most_3_million_parameters_and_16_rotary_pairs(tokenizer: Any, tmp_path: Path) -> None:
    model = new_walker(tokenizer, seed=0)
    model.save_pretrained(tmp_path)
    base = describe(model, name="walker", path=str(tmp_path), original_length=None)
    assert base.parameters <= 3_000_000
    assert base.rotary_dim // 2 >= 16
    assert base.original_length == WINDOW == 256
    again, other = new_walker(tokenizer, seed=0), new_walker(tokenizer, seed=1)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_a_walker_is_made_from_text_to_a_checkpoint(tmp_path: Path) -> None:
    record = walker(tmp_path, steps=3)
    folder = tmp_path / "walker"
    assert window_before(str(folder), start="checkpoint", original_length=None) == WINDOW
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
    assert record["commit"] == "0" * 40
    assert record["test_perplexity_256"] < 2 * VOCABULARY
    assert record["parameters"] == stored.num_parameters()
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".ckpt")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a walker of ten steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    walker(folder)
    return folder


def assert_resumes_to_the_same_walker(folder: Path, undisturbed: Path) -> None:
    """From the checkpoint after four steps."""
    assert (folder / "state" / "last.ckpt").is_file()
    assert not (folder / "walker").exists()
    asked: list[int] = []
    record = walker(folder, before_step=asked.append)
    assert asked == [4, 5, 6, 7, 8, 9]
    expected = read_json(undisturbed / "walker" / "training.json")
    assert record["test_perplexity_256"] == expected["test_perplexity_256"]
    a, b = (load_model(str(path / "walker")).state_dict() for path in (undisturbed, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_walker_killed_in_training_resumes_to_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    run_until_killed(KILLED, tmp_path)
    assert_resumes_to_the_same_walker(tmp_path, undisturbed)


def test_ctrl_c_stops_with_the_state_kept(undisturbed: Path, tmp_path: Path) -> None:
    process = start(SLOWLY, tmp_path)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "step 6":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted", error
    assert process.returncode == 0
    assert_resumes_to_the_same_walker(tmp_path, undisturbed)
