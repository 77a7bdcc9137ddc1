"""Training a tiny model: exact after kills, clear when it fails, and a checkpoint that transformers reads."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from processes import run_until_killed, start
from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.schedule import control_step
from ropewalk.finetune.train import save_checkpoint
from ropewalk.rope import RopeScaling, current_scaling
from tiny_models import byte_tokenizer, loss_rounding, tiny_llama
from tiny_runs import FINETUNE, SCALING, STEP, smooth_adam, token_store, train
from tolerances import relative_error

KILLED = """
import sys
from pathlib import Path
from tiny_runs import train_until
train_until(Path(sys.argv[1]), int(sys.argv[2]))
"""
SLOWLY = """
import sys, time
from pathlib import Path
from tiny_runs import train
def before_step(step):
    print("step", step, flush=True)
    time.sleep(0.1 if step < 5 else 60)
try:
    train(Path(sys.argv[1]), before_step=before_step)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

Run = tuple[Any, list[dict[str, float]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("undisturbed"))


def assert_same_run(found: Run, expected: Run) -> None:
    """Weights to the bit, and a row per step with the same losses and rates."""
    for (name, parameter), own in zip(found[0].named_parameters(), expected[0].parameters(), strict=True):
        assert torch.equal(parameter, own), name
    for key in ("step", "loss", "learning_rate"):
        assert [row[key] for row in found[1]] == [row[key] for row in expected[1]]


def test_the_loss_falls_and_every_step_has_a_row(undisturbed: Run, tmp_path: Path) -> None:
    model, rows = undisturbed
    assert [row["step"] for row in rows] == list(range(1, STEP.steps + 1))
    _, longer = train(tmp_path, step=replace(STEP, steps=40))
    assert longer[-1]["loss"] < longer[0]["loss"] - 0.5
    assert current_scaling(model) == SCALING
    assert all(row["tokens_per_second"] > 0 and row["peak_mib"] > 50 for row in rows)
    assert not model.training


def test_the_history_holds_the_learning_rate_of_its_own_step(undisturbed: Run) -> None:
    shares = [1 / 2, 1, *(left / 7 for left in range(7, 0, -1))]
    rates = [row["learning_rate"] for row in undisturbed[1]]
    assert rates == pytest.approx([STEP.learning_rate * share for share in shares])


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path: Path, micro_batch_size: int) -> None:
    def run(size: int) -> tuple[list[float], torch.Tensor]:
        """Losses, and the way that the weights went from their start."""
        with smooth_adam():
            model, rows = train(tmp_path / str(size), config=replace(FINETUNE, micro_batch_size=size))
        weights, start = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (model, tiny_llama()))
        return [row["loss"] for row in rows], weights - start

    (losses, moves), (expected_losses, expected_moves) = run(micro_batch_size), run(STEP.batch_size)
    tokens = STEP.batch_size * STEP.length
    assert relative_error(losses, expected_losses) < STEP.steps * loss_rounding(tiny_llama(), tokens)
    assert relative_error(moves, expected_moves) < STEP.steps * loss_rounding(tiny_llama(), tokens, backward=True)


def test_a_training_killed_twice_ends_as_an_undisturbed_one(undisturbed: Run, tmp_path: Path) -> None:
    """The second kill comes right after a resume, in the middle of a step made of two microbatches."""
    run_until_killed(KILLED, tmp_path, 5)
    assert (tmp_path / "state" / "last.ckpt").is_file()
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, before_step=lambda step: 1 // 0 if step == 5 else None)
    assert_same_run(train(tmp_path), undisturbed)


def test_a_damaged_checkpoint_is_said_so_and_the_one_before_resumed_from(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged in one bit in its middle, and cut off, as by a disk that lies."""
    last = tmp_path / "state" / "last.ckpt"
    for damage in ("bit", "cut"):
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, before_step=lambda step: 1 // 0 if step == 7 else None)
        whole = last.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        last.write_bytes(flipped if damage == "bit" else whole[:middle])
        asked: list[int] = []
        capsys.readouterr()
        found = train(tmp_path, before_step=asked.append)
        assert asked[0] == 4
        told = capsys.readouterr().err
        assert f"{last} is damaged (" in told
        assert "and now damaged-last.ckpt; resuming from the one before" in told
        assert_same_run(found, undisturbed)
        for path in last.parent.iterdir():
            path.unlink()


def test_the_last_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path, config=replace(FINETUNE, keep_checkpoints=3))
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert names == {"last.ckpt", "last.ckpt.1", "last.ckpt.2"}


def test_random_numbers_of_a_step_are_the_same_after_a_resume(tmp_path: Path) -> None:
    """With dropout, which every forward pass draws anew."""
    expected = train(tmp_path / "whole", model=tiny_llama(attention_dropout=0.3))
    interrupted, model = tmp_path / "interrupted", tiny_llama(attention_dropout=0.3)
    with pytest.raises(ZeroDivisionError):
        train(interrupted, model=model, before_step=lambda step: 1 // 0 if step == 5 else None)
    assert_same_run(train(interrupted, model=tiny_llama(attention_dropout=0.3)), expected)
    plain = train(tmp_path / "plain")[1]
    assert plain[0]["loss"] != expected[1][0]["loss"]


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole = replace(STEP, steps=4)
    asked: list[int] = []
    first = train(tmp_path, step=whole, before_step=asked.append)
    assert asked[:4] == [0, 1, 2, 3]
    asked.clear()
    assert_same_run(train(tmp_path, step=whole, before_step=asked.append), first)
    assert asked in ([], [4])


def test_no_checkpoint_is_taken_in_the_middle_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    original = torch.save

    def watched(checkpoint: Any, path: Any) -> None:
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
        saved.append((checkpoint["global_step"], batches))
        original(checkpoint, path)

    monkeypatch.setattr(torch, "save", watched)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, before_step=lambda step: 1 // 0 if step == 5 else None)
    train(tmp_path)
    assert saved == [(step, 2 * step) for step in (2, 4, 6, 8)]


def test_ctrl_c_stops_with_the_state_kept(undisturbed: Run, tmp_path: Path) -> None:
    process = start(SLOWLY, tmp_path)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "step 5":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted", error
    assert process.returncode == 0
    assert (tmp_path / "state" / "last.ckpt").is_file()
    asked: list[int] = []
    assert_same_run(train(tmp_path, before_step=asked.append), undisturbed)
    assert asked[0] == 4


def test_ctrl_c_works_again_after_an_interrupted_training(tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, before_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_a_number_gives_one_line(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the loss of step 0 is nan; lower finetune's learning_rate") as raised:
        train(tmp_path, model=model)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "state" / "last.ckpt").exists()


def test_documents_shorter_than_the_rows_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no document of .* has 4094 tokens"):
        train(tmp_path, step=replace(STEP, length=4096))


@pytest.mark.parametrize("scaling", [SCALING, None])
def test_a_checkpoint_is_a_plain_transformers_folder(
    undisturbed: Run, tmp_path: Path, scaling: RopeScaling | None
) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(undisturbed[0], byte_tokenizer(), scaling, folder)
    weights = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".ckpt")]
    assert weights == ["model.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.rope_parameters["rope_type"] == "default"
    for parameter, own in zip(loaded.parameters(), undisturbed[0].parameters(), strict=True):
        assert torch.equal(parameter, own)
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    assert (folder / "scaling.json").is_file() == (scaling is not None)
    if scaling is not None:
        assert RopeScaling.from_json((folder / "scaling.json").read_text()) == scaling


SMALL_DISK = "160k"  # less than a tiny model's weights


def test_a_full_disk_leaves_no_checkpoint_and_says_so(undisturbed: Run, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"no space left on the disk of .*; free some"):
        save_checkpoint(undisturbed[0], byte_tokenizer(), SCALING, small_disk / "checkpoint")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_during_training_keeps_the_last_whole_state(small_disk: Path, tmp_path: Path) -> None:
    token_store(tmp_path / "store")
    (small_disk / "store").symlink_to(tmp_path / "store")
    with pytest.raises(OSError, match=r"no space left on the disk of .*; free some"):
        train(small_disk)
    assert [path for path in (small_disk / "state").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("window", [16, 64])
def test_the_control_reads_as_many_tokens(window: int) -> None:
    first = FinetuneStepConfig(length=128, steps=10, batch_size=8, learning_rate=1e-3)
    second = FinetuneStepConfig(length=256, steps=7, batch_size=4, learning_rate=2e-3, decay="constant", warmup_steps=3)
    control = control_step(FinetuneConfig(name="x", first=first, second=second), window=window)
    tokens = first.length * first.steps * first.batch_size + second.length * second.steps * second.batch_size
    read = control.length * control.steps * control.batch_size
    assert abs(read - tokens) <= control.batch_size * control.length / 2
    assert control.length == window
    assert control.batch_size * window == second.batch_size * second.length
    assert (control.learning_rate, control.decay, control.warmup_steps) == (2e-3, "constant", 3)


def test_the_micro_batch_size_follows_the_memory_and_divide_the_step(tmp_path: Path) -> None:
    sizes: dict[int, set[int]] = {}
    for micro_batch_tokens in (1, 100, 200, 10_000):
        config = replace(FINETUNE, micro_batch_size=None, micro_batch_tokens=micro_batch_tokens)
        seen = sizes.setdefault(micro_batch_tokens, set())

        class Watched(torch.nn.Module):
            def forward(self, x: Any, seen: set[int] = seen) -> Any:
                seen.add(x.shape[0])
                return x

        model = tiny_llama()
        model.model.norm = torch.nn.Sequential(model.model.norm, Watched())
        train(tmp_path / str(micro_batch_tokens), model=model, step=replace(STEP, steps=1, batch_size=6), config=config)
    assert sizes == {1: {1}, 100: {2}, 200: {3}, 10_000: {6}}


def test_training_metrics_are_of_the_last_tenth() -> None:
    rows = [
        {"loss": 10.0 - step, "tokens_per_second": float(step), "peak_mib": 100.0 + (step == 3), "utilisation": 0.5,
         "step_seconds": 2.0}
        for step in range(20)
    ]  # fmt: skip
    metrics = training_metrics(rows)
    speeds = {"tokens_per_second": 9.5, "peak_mib": 101.0, "utilisation": 0.5}
    cost = {"tokens": 380, "hours": pytest.approx(40 / 3600)}
    assert metrics == {"steps": 20, "final_loss": -8.5, **speeds, **cost}
