"""Models that stage finetune_rivals trained, and what tells one model's weights from another's."""

from collections.abc import Mapping
from pathlib import Path

from ropewalk.files import file_hash


def rival_paths(checkpoints: Path) -> dict[str, str]:
    """Folders of the rivals by the names that they are evaluated under; a leading dot is a half-written one."""
    found = sorted((checkpoints / "rivals").glob("*/config.json"))
    folders = [path.parent for path in found if not path.parent.name.startswith(".")]
    return {f"rival_{folder.name}": str(folder) for folder in folders}


def weights_of(paths: Mapping[str, str]) -> dict[str, str]:
    """Hash of each model's weight files; a hub id, which names its own revision, stands for itself."""
    found = {}
    for name, path in paths.items():
        files = sorted(Path(path).glob("*.safetensors"))
        found[name] = "".join(map(file_hash, files)) or path
    return found
