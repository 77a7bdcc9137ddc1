"""Checkpoints of split weights: a folder into which every process writes its own shards (torch.distributed.checkpoint).

Tensors lie in the shards; all else is in one small file, which is read without unpickling. torch's index of the shards
(``.metadata``) is a pickle. It is read only where it has the checksum that it was written with, and only from the state
folder of a training, which nobody else writes to.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from ropewalk.files import file_hash, naming_full_disk

_REST, _INDEX, _INDEX_HASH = "rest.pt", ".metadata", "index_sha256"
_WEIGHTS = "state_dict"


class ShardWriter(FileSystemWriter):
    """Writes the shards of this process into ``folder``; in the first process, also completes the checkpoint.

    Args:
        rest: everything but weights and optimizer states, such as the step; copied, since training continues while the
            shards are written.
        end: called when the folder is complete.
    """

    def __init__(self, folder: Path, rest: dict[str, Any], end: Callable[[], None]) -> None:
        super().__init__(folder)
        self._folder, self._rest, self._end = folder, copy.deepcopy(rest), end

    def write_data(self, plan: Any, planner: Any) -> Any:
        with naming_full_disk(self._folder.parent):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: Any) -> None:
        # torch calls this in the first process when all have written.
        with naming_full_disk(self._folder.parent):
            super().finish(metadata, results)
            torch.save({**self._rest, _INDEX_HASH: file_hash(self._folder / _INDEX)}, self._folder / _REST)
            self._end()


def rest(folder: Path) -> dict[str, Any]:
    """Read what is not in the shards of a checkpoint."""
    contents: dict[str, Any] = torch.load(folder / _REST, weights_only=True, map_location="cpu")
    return contents


def _index(folder: Path) -> Metadata:
    """Read torch's index of the shards; raises ValueError unless it is as it was written."""
    if file_hash(folder / _INDEX) != rest(folder)[_INDEX_HASH]:
        raise ValueError(f"{_INDEX} has another checksum")
    return FileSystemReader(folder).read_metadata()


def parts(folder: Path) -> Iterator[Any]:
    """The parts of a checkpoint, each of which is a file in zip format with checksums.

    Raises:
        OSError, RuntimeError, ValueError: a part is missing or cannot be read.
    """
    yield folder / _REST
    for stored in _index(folder).storage_data.values():
        with (folder / stored.relative_path).open("rb") as shards:
            shards.seek(stored.offset)
            yield io.BytesIO(shards.read(stored.length))


def split_off_tensors(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take weights and states of optimizers out of a ``checkpoint`` of Lightning's, for the shards."""
    states = {_optimizer(n): states.pop("state") for n, states in enumerate(checkpoint["optimizer_states"])}
    return {_WEIGHTS: checkpoint.pop(_WEIGHTS), **states}


def read(folder: Path, weights: dict[str, Any], optimizer_states: list[dict[str, Any]]) -> dict[str, Any]:
    """Read a checkpoint; every process reads its own shards, into the tensors that it passes.

    Args:
        weights: those of this process, by name.
        optimizer_states: those of this process, with parameters by name.
    """
    tensors = split_off_tensors({_WEIGHTS: weights, "optimizer_states": optimizer_states})
    load(tensors, checkpoint_id=folder)
    return _joined(rest(folder), tensors)


def read_whole(folder: Path) -> dict[str, Any]:
    """Read all of a checkpoint in this process, as Lightning's strategies for whole weights write it."""
    index, flat = _index(folder), {}
    tensors: dict[str, Any] = {}
    for name, stored in index.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        flat[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
    with warnings.catch_warnings():
        # It warns that no other process takes part, which is intended.
        warnings.simplefilter("ignore", UserWarning)
        load(flat, checkpoint_id=folder, no_dist=True)
    for name, (*outer, last) in index.planner_data.items():
        place = tensors
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = flat[name]
    return _joined(rest(folder), tensors)


def _joined(checkpoint: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Undo `split_off_tensors`."""
    for number, states in enumerate(checkpoint["optimizer_states"]):
        states["state"] = tensors[_optimizer(number)]
    return {**checkpoint, _WEIGHTS: tensors[_WEIGHTS]}


def _optimizer(number: int) -> str:
    return f"optimizer_{number}"
