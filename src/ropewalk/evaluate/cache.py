"""Measured figures, each in a file under the hash of all that it depends on.

The folder is shared by every run: a killed evaluation goes on with what is there, and another method, length or task
is the only thing that is measured when it is added. Removing the folder costs time and nothing else.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ropewalk.files import file_hash, read_json, write_json
from ropewalk.rope import LengthSwitch, RopeScaling

REVISION = 1
"""Of the ways of measuring: raised when a change to the code changes figures."""


def weights_hash(path: str | Path, model: Any) -> str:
    """Of a checkpoint's config and weights, or of a hub id and its revision, and of the dtype that it was loaded in."""
    folder = Path(path)
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"]) if folder.is_dir() else []
    parts = [file_hash(file) for file in files] or [str(path), str(getattr(model.config, "_commit_hash", None))]
    return hashlib.sha256("".join([*parts, str(model.dtype)]).encode()).hexdigest()


def tensor_hash(rows: Tensor) -> str:
    return hashlib.sha256(f"{tuple(rows.shape)}".encode() + rows.contiguous().numpy().tobytes()).hexdigest()


def json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Of its vocabulary and of how it splits a text with numbers."""
    sample = tokenizer("A 1 23 456 7890 12345 678901.\n\tx = 12", add_special_tokens=False)["input_ids"]
    return json_hash([sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]), sample])


def scaling_key(scaling: RopeScaling | LengthSwitch) -> Any:
    """What of a scaling, or of one by length, a figure depends on: names and targets are not part of it."""
    if not isinstance(scaling, RopeScaling):
        return [[up_to, scaling_key(own)] for up_to, own in scaling]
    return [scaling.factors, scaling.n_hat, scaling.attention_factor]


@dataclass(frozen=True)
class Cache:
    """Figures of some models, kept in ``folder``; without one, nothing is kept."""

    folder: Path | None = None
    weights: dict[str, str] = field(default_factory=dict)
    """`weights_hash` by the model's name."""

    def _about(self, model: str, what: dict[str, Any]) -> dict[str, Any]:
        versions = {name: version(name) for name in ("torch", "transformers")}
        return {"revision": REVISION, **versions, "model": self.weights[model], **what}

    def _file(self, about: dict[str, Any]) -> Path:
        assert self.folder is not None
        name = json_hash(about)[:32]
        return self.folder / name[:2] / f"{name}.json"

    def get(self, model: str, what: dict[str, Any]) -> Any:
        """The figure of ``what`` (JSON values) on ``model``, or None."""
        if self.folder is None:
            return None
        file = self._file(self._about(model, what))
        try:
            return read_json(file)["figure"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, model: str, what: dict[str, Any], figure: Any) -> None:
        if self.folder is not None:
            about = self._about(model, what)
            write_json(self._file(about), {"about": about, "figure": figure})

    def kept(self, model: str, what: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The figure that is there, or ``measure()``'s, which is kept."""
        found = self.get(model, what)
        if found is None:
            found = measure()
            self.put(model, what, found)
        return found


NO_CACHE = Cache()


def model_cache(folder: str | None, paths: dict[str, str], models: dict[str, Any]) -> Cache:
    """A cache in ``folder`` for loaded models by name."""
    if folder is None:
        return NO_CACHE
    return Cache(Path(folder), {name: weights_hash(paths[name], model) for name, model in models.items()})
