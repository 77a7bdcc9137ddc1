"""Checkpoints of a training, files and folders of shards: whole ones are found, and damaged ones put aside."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from ropewalk.models.checkpoints import WholeCheckpointIO, newest_checkpoint, rotating, steps_done
from ropewalk.models.sharded import ShardWriter, split_off_tensors


def checkpoint(step: int) -> dict[str, Any]:
    """A checkpoint as Lightning makes it, with parameters by name as torch's functions for split weights give them."""
    weights = {name: torch.full((40, 3), float(step)) for name in ("body.weight", "head.weight")}
    moments = {name: {"step": torch.tensor(float(step)), "exp_avg": weight + 1} for name, weight in weights.items()}
    groups = [{"lr": 0.1, "betas": (0.9, 0.95), "params": list(weights)}]
    return {
        "global_step": step,
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "callbacks": {"History": {"rows": [{"loss": 1.5}] * step}},
    }


def write_folder(path: Path, step: int, *, keep: int = 2) -> None:
    with rotating(path, keep) as aside:
        rest = checkpoint(step)
        save(split_off_tensors(rest), storage_writer=ShardWriter(aside, rest, lambda: None), no_dist=True)


def write_file(path: Path, step: int, *, keep: int = 2) -> None:
    WholeCheckpointIO(keep).save_checkpoint(checkpoint(step), path)


def equal(actual: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(equal(actual[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        return len(actual) == len(expected) and all(map(equal, actual, expected))
    return torch.equal(actual, expected) if isinstance(expected, torch.Tensor) else bool(actual == expected)


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path / "last.ckpt", 3)
    loaded = WholeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    loaded.pop("index_sha256", None)
    assert equal(loaded, checkpoint(3))
    assert steps_done(newest_checkpoint(tmp_path / "last.ckpt")) == 3


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept_whatever_kind_they_are(tmp_path: Path, keep: int) -> None:
    last = tmp_path / "last.ckpt"
    for step, write in enumerate([write_file, write_folder, write_folder, write_file, write_file, write_folder]):
        write(last, step, keep=keep)
        assert steps_done(newest_checkpoint(last)) == step
        kept = min(keep, step + 1)
        assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", *(f"last.ckpt.{n}" for n in range(1, kept))}


def test_a_kill_before_the_new_checkpoint_is_in_its_place_leaves_the_one_before(tmp_path: Path) -> None:
    """With a single one kept; a moment before the renaming, as when the process is killed there."""
    last = tmp_path / "last.ckpt"
    write_folder(last, 1, keep=1)
    last.rename(tmp_path / "last.ckpt.1")
    assert steps_done(newest_checkpoint(last)) == 1
    write_folder(last, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


PARTS = {"__0_0.distcp": np.float32(2).tobytes(), ".metadata": b"head.weight", "rest.pt": b"global_step"}
"""What each file of a folder holds, beside padding."""


def flip(path: Path) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[data.index(PARTS[path.name])] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_folder_is_said_so_and_the_one_before_found(
    tmp_path: Path, part: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_folder(last, step)
    damage(last / part)
    assert newest_checkpoint(last) == tmp_path / "last.ckpt.1"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{last} is damaged (")
    assert line.endswith(") and now damaged-last.ckpt; resuming from the one before")
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt.1", "damaged-last.ckpt"}
    # The next damaged one takes its place.
    shutil.copytree(tmp_path / "damaged-last.ckpt", last)
    assert steps_done(newest_checkpoint(last)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt.1", "damaged-last.ckpt"}
