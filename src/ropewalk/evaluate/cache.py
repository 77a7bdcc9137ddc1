"""Measured figures, each in a file under the hash of all that it depends on, in a folder that all runs share.

A killed evaluation resumes from the stored figures, and processes that run the same evaluation at once share the work.
The folder may be removed at any time; its figures are then measured again.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ropewalk.files import file_hash, read_json, write_json
from ropewalk.models.published import read_config
from ropewalk.progress import Progress
from ropewalk.rope import LengthSwitch, RopeScaling

Job = TypeVar("Job")
Result = TypeVar("Result")

REVISION = 1
"""Revision of the measurements, raised when a change to the code changes figures."""


def weights_hash(path: str | Path, *, dtype: str, trust_remote_code: bool = False) -> str:
    """Hash of a checkpoint's config and weights, or of a hub id and its revision, and of the dtype it is loaded in."""
    folder = Path(path)
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"]) if folder.is_dir() else []
    files = [folder] if folder.is_file() else files
    parts = [file_hash(file) for file in files]
    if not parts:
        config = read_config(str(path), trust_remote_code=trust_remote_code)
        parts = [str(path), str(getattr(config, "_commit_hash", None))]
    return hashlib.sha256("".join([*parts, f"torch.{dtype}"]).encode()).hexdigest()


def tensor_hash(rows: Tensor) -> str:
    """Hash of a tensor's shape and content."""
    return hashlib.sha256(f"{tuple(rows.shape)}".encode() + rows.contiguous().numpy().tobytes()).hexdigest()


def json_hash(value: Any) -> str:
    """Hash of a value that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and of how it splits a text with numbers."""
    sample = tokenizer("A 1 23 456 7890 12345 678901.\n\tx = 12", add_special_tokens=False)["input_ids"]
    return json_hash([sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]), sample])


def scaling_key(scaling: RopeScaling | LengthSwitch) -> Any:
    """The part of a scaling, or of a length switch, that a figure depends on: no names and no target lengths."""
    if not isinstance(scaling, RopeScaling):
        return [[up_to, scaling_key(entry)] for up_to, entry in scaling]
    return list(scaling.effect)


@dataclass(frozen=True)
class Cache:
    """Figures of some models, stored in ``folder``; without a folder, nothing is stored."""

    folder: Path | None = None
    weights: dict[str, str] = field(default_factory=dict)
    """`weights_hash` by the model's name."""
    turns: Path | None = None
    """Folder of the locks of those processes that share the work; None for a single process."""
    worker: int = 0
    """Number of this process among them, of which the first shows its progress."""

    def _file(self, model: str, what: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The file of a figure, and all that the figure depends on."""
        assert self.folder is not None
        versions = {name: version(name) for name in ("torch", "transformers")}
        about = {"revision": REVISION, **versions, "model": self.weights[model], **what}
        name = json_hash(about)[:32]
        return self.folder / name[:2] / f"{name}.json", about

    def get(self, model: str, what: dict[str, Any]) -> Any:
        """The stored figure of ``what`` (JSON values) on ``model``, or None."""
        try:
            return None if self.folder is None else read_json(self._file(model, what)[0])["figure"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, model: str, what: dict[str, Any], figure: Any) -> None:
        if self.folder is not None:
            file, about = self._file(model, what)
            write_json(file, {"about": about, "figure": figure})

    def get_or_measure(self, model: str, what: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The figure of ``what`` on ``model``, from the cache or else from ``measure``, whose figure is then cached."""
        figure = self.get(model, what)
        if figure is None:
            figure = measure()
            self.put(model, what, figure)
        return figure

    def shared_out(
        self,
        jobs: Sequence[Job],
        measure: Callable[[Job], Result],
        *,
        desc: str,
        unit: str,
        sizes: Sequence[int] | None = None,
    ) -> list[Result]:
        """Results of ``measure`` for each of the ``jobs``, which all processes must pass in the same order.

        A job that another process is working on is postponed until its figures are in the cache. Locks end with their
        process, so the jobs of a killed process are done by the others.

        Args:
            desc: what is measured, for the progress bar; the same in all processes, and different in every call.
            unit: what the progress bar counts: jobs, or what ``sizes`` counts of each job.
        """
        counts = sizes or [1] * len(jobs)
        scaled, hidden = sizes is not None, self.worker > 0
        results: dict[int, Result] = {}
        with Progress(total=sum(counts), desc=desc, unit=unit, unit_scale=scaled, disable=hidden) as bar:
            for wait in (False, True):
                for number in [number for number in range(len(jobs)) if number not in results]:
                    with self._turn(f"{desc}, {number}", wait=wait) as is_ours:
                        if is_ours:
                            results[number] = measure(jobs[number])
                            bar.update(counts[number])
        return [results[number] for number in range(len(jobs))]

    @contextmanager
    def _turn(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock ``name``; yields False where another process holds it and this one does not ``wait``."""
        if self.turns is None:
            yield True
            return
        self.turns.mkdir(parents=True, exist_ok=True)
        with (self.turns / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


NO_CACHE = Cache()


def model_cache(
    folder: str | Path | None,
    paths: Mapping[str, str],
    *,
    dtype: str,
    trust_remote_code: bool = False,
    turns: Path | None = None,
    worker: int = 0,
) -> Cache:
    """A cache in ``folder`` for models by name that are loaded in ``dtype``."""
    if folder is None:
        return NO_CACHE
    read = partial(weights_hash, dtype=dtype, trust_remote_code=trust_remote_code)
    return Cache(Path(folder), {name: read(path) for name, path in paths.items()}, turns, worker)
