"""Longer context windows for language models with rotary position embeddings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from ropewalk.export.load import load_extended as load_extended

__all__ = ["__version__", "load_extended"]


def __getattr__(name: str) -> Any:
    # Late, so that `import ropewalk` does not import torch and transformers.
    if name == "load_extended":
        from ropewalk.export.load import load_extended

        return load_extended
    if name == "__version__":
        from importlib.metadata import version

        return version("ropewalk")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
