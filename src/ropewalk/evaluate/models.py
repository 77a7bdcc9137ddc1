"""The models that an evaluation reads: where they lie, their weights' hashes, and loading them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.files import file_hash
from ropewalk.models.base import BaseModel, extended_path, load_model


def model_paths(base: BaseModel, checkpoints: Path) -> dict[str, str]:
    """Paths by name: the base model, and of fine-tuned model, control and trained baselines those that were trained."""
    paths = {"base": base.path}
    if (extended := extended_path(base, checkpoints)) != base.path:
        paths["finetuned"] = extended
    if (checkpoints / "control" / "config.json").is_file():
        paths["control"] = str(checkpoints / "control")
    configs = sorted((checkpoints / "baselines").glob("*/config.json"))
    # A leading dot: half-written by a process that was killed.
    folders = [path.parent for path in configs if not path.parent.name.startswith(".")]
    return paths | {f"baseline_{folder.name}": str(folder) for folder in folders}


def load_models(paths: Mapping[str, str], **loading: Any) -> dict[str, Any]:
    """The models of `model_paths`, loaded by `load_model` with the arguments ``loading``."""
    return {name: load_model(path, **loading) for name, path in paths.items()}


def weights_of(paths: Mapping[str, str]) -> dict[str, str]:
    """Hash of each model's weight files; a hub id, which names its own revision, stands for itself."""
    return {
        name: "".join(map(file_hash, sorted(Path(path).glob("*.safetensors")))) or path for name, path in paths.items()
    }
