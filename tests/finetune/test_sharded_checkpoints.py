"""Split weights are saved shard by shard beside the training, whole or not at all, and resumed from to the bit."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from finetune.test_devices import PARALLEL, SHORT, two_processes
from processes import kill_self
from ropewalk.models.sharded import ShardWriter
from tiny_models import tiny_llama
from tiny_runs import FINETUNE, token_store, train

CONFIG = replace(FINETUNE, checkpoint_every=1, micro_batch_size=1)
RANKS = {count: replace(PARALLEL["fsdp"], devices=count) for count in (2, 4)}


def split(folder: Path, *, devices: int = 2, before_step: Callable[[int], None] = lambda step: None) -> None:
    """Train on several devices, and keep what the first one ends with."""
    model, rows = train(folder, step=SHORT, config=CONFIG, parallel=RANKS[devices], before_step=before_step)
    if os.environ["RANK"] == "0":
        torch.save((model.state_dict(), [row["loss"] for row in rows]), folder / "result")


def result_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    weights, losses = torch.load(folder / "result", weights_only=True)
    return weights, losses


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    token_store(folder := tmp_path_factory.mktemp("store") / "store")
    return folder


@pytest.fixture
def folder(store: Path, tmp_path: Path) -> Path:
    (tmp_path / "store").symlink_to(store)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "store").symlink_to(store)
    two_processes(lambda rank: split(folder))
    return folder


def test_every_process_writes_its_own_half_and_the_last_checkpoints_are_kept(undisturbed: Path) -> None:
    assert names_in(undisturbed / "state") == {"last.ckpt", "last.ckpt.1"}
    for checkpoint in (undisturbed / "state").iterdir():
        assert names_in(checkpoint) == {".metadata", "rest.pt", "__0_0.distcp", "__1_0.distcp"}
        sizes = [path.stat().st_size for path in checkpoint.glob("*.distcp")]
        # A weight and its two moments, and no gradient.
        assert sum(sizes) > 3 * 4 * tiny_llama().num_parameters()
        assert max(sizes) < 0.52 * sum(sizes)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_training_killed_while_shards_are_written_resumes_to_the_bit(
    undisturbed: Path, folder: Path, killed: int
) -> None:
    """One of the processes is killed when it has written its shards, of the third checkpoint."""

    def work(rank: int) -> None:
        original, saves = FileSystemWriter.write_data, []

        def write_data(writer: FileSystemWriter, *arguments: Any) -> Any:
            written = original(writer, *arguments)
            saves.append(writer)
            if rank == killed and len(saves) == 3:
                kill_self()
            return written

        FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
        split(folder)

    two_processes(work, killed=killed)
    state = folder / "state"
    assert names_in(state) - {"last.ckpt", "last.ckpt.1"} == {
        path.name for path in state.glob(".last.ckpt.writing-*") if killed == 0 or path.is_dir()
    }
    asked = folder / "asked"

    def resume(rank: int) -> None:
        split(folder, before_step=lambda step: asked.touch() if step < 2 else None)

    two_processes(resume)
    assert not asked.exists()
    assert names_in(state) == {"last.ckpt", "last.ckpt.1"}
    (weights, losses), (expected, expected_losses) = result_of(folder), result_of(undisturbed)
    assert losses == expected_losses
    assert {name for name, weight in weights.items() if not torch.equal(weight, expected[name])} == set()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_that_fails_in_one_process_ends_all_with_the_last_whole_state(folder: Path, failing: int) -> None:
    def work(rank: int) -> None:
        original, saves = FileSystemWriter.write_data, []

        def write_data(writer: FileSystemWriter, *arguments: Any) -> Any:
            saves.append(writer)
            if rank == failing and len(saves) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(writer, *arguments)

        FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
        with pytest.raises(OSError, match=r"^no space left on the disk of .*state; free some and run the same command"):
            split(folder)
        assert len(saves) == 2

    two_processes(work)
    assert names_in(folder / "state") == {"last.ckpt"}


def test_the_last_save_is_waited_for_and_its_failure_is_raised(folder: Path) -> None:
    def work(rank: int) -> None:
        original, saves = ShardWriter.finish, []

        def finish(writer: ShardWriter, **arguments: Any) -> None:
            saves.append(writer)
            if len(saves) == SHORT.steps:
                raise ValueError("not this one")
            original(writer, **arguments)

        ShardWriter.finish = finish  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"^not this one$"):
            split(folder)

    two_processes(work)
    assert names_in(folder / "state") == {"last.ckpt", "last.ckpt.1"}


def test_the_training_goes_on_while_shards_are_written(undisturbed: Path, folder: Path) -> None:
    """The shards of a step are those of that step, though none is written before the next one has begun."""

    def work(rank: int) -> None:
        begun = [threading.Event() for _ in range(SHORT.steps)]
        original, saves = FileSystemWriter.write_data, []

        def write_data(writer: FileSystemWriter, *arguments: Any) -> Any:
            saves.append(writer)
            if len(saves) < SHORT.steps:
                assert begun[len(saves)].wait(60)
            return original(writer, *arguments)

        FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
        split(folder, before_step=lambda step: begun[step].set())

    two_processes(work)
    for name in ("last.ckpt", "last.ckpt.1"):
        for shards in ("__0_0.distcp", "__1_0.distcp"):
            ours, theirs = (path / "state" / name / shards for path in (folder, undisturbed))
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_training_resumes_on_twice_as_many_devices(undisturbed: Path, folder: Path) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise InterruptedError

    def work(rank: int) -> None:
        with pytest.raises(InterruptedError):
            split(folder, before_step=stop)

    two_processes(work)
    two_processes(lambda rank: split(folder, devices=4), count=4)
    assert len(list((folder / "state" / "last.ckpt").glob("*.distcp"))) == 4
    assert result_of(folder)[1] == pytest.approx(result_of(undisturbed)[1], rel=1e-4)
