"""The models that an evaluation reads: their paths, the hashes of their weights, and loading them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ropewalk.files import file_hash
from ropewalk.models.base import BaseModel, extended_path, load_model
from ropewalk.models.memory import device_memory

_KEPT_SHARE = 0.25
"""Share of a device's memory that several loaded models may take together."""


def model_paths(base: BaseModel, checkpoints: Path) -> dict[str, str]:
    """Paths by name: the base model, and whichever of fine-tuned model, control and baselines were trained."""
    paths = {"base": base.path}
    if (extended := extended_path(base, checkpoints)) != base.path:
        paths["finetuned"] = extended
    if (checkpoints / "control" / "config.json").is_file():
        paths["control"] = str(checkpoints / "control")
    configs = sorted((checkpoints / "baselines").glob("*/config.json"))
    # A leading dot: half-written by a process that was killed.
    folders = [path.parent for path in configs if not path.parent.name.startswith(".")]
    return paths | {f"baseline_{folder.name}": str(folder) for folder in folders}


def kept_models(size: float, memory: float) -> int:
    """How many models of ``size`` bytes stay loaded on a device with ``memory`` bytes."""
    return max(1, int(_KEPT_SHARE * memory / size))


class LoadedModels(Mapping[str, Any]):
    """Models by name, each loaded by `load_model` when it is asked for.

    Several models stay loaded while they take at most a quarter of the device's memory; larger ones are loaded one at a
    time. The caller must drop its reference to a model before it asks for another.

    Args:
        paths: as `model_paths` gives them.
        memory: bytes of the device's memory; by default those of this machine's.
        loading: arguments of `load_model`.
    """

    def __init__(self, paths: Mapping[str, str], *, memory: float | None = None, **loading: Any) -> None:
        self._paths, self._memory, self._loading = paths, memory or device_memory(), loading
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            path = self._paths[name]
            # All of them are of the same size.
            sizes = [sum(weight.nbytes for weight in model.parameters()) for model in self._loaded.values()]
            if sizes and len(sizes) >= kept_models(sizes[0], self._memory):
                self._loaded.clear()
            self._loaded[name] = load_model(path, **self._loading)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def weights_of(paths: Mapping[str, str]) -> dict[str, str]:
    """Hash of each model's weight files; a hub id, which names its own revision, stands for itself."""
    return {
        name: "".join(map(file_hash, sorted(Path(path).glob("*.safetensors")))) or path for name, path in paths.items()
    }
