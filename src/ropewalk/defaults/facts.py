"""Facts about a model that its config.json states, and about this machine."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ropewalk.config import ModelConfig


@dataclass(frozen=True)
class Facts:
    """Facts about a model that its config.json states."""

    window: int
    """Window in tokens before the extension."""
    parameters: int
    layers: int
    hidden: int
    keeps_documents_apart: bool = True
    """Whether attention can be kept within the documents of a row (`ropewalk.models.head.keeps_documents_apart`)."""

    @property
    def size(self) -> str:
        """The number of parameters in words."""
        unit, name = (1e9, "B") if self.parameters >= 1e9 else (1e6, "M")
        return f"{self.parameters / unit:.3g} {name} parameters"

    def forward_flops(self, length: int) -> float:
        """FLOPs of a forward pass over ``length`` tokens: the linear maps, and causal attention."""
        return 2.0 * self.parameters * length + 2.0 * self.layers * self.hidden * length**2


def read_facts(model: ModelConfig) -> Facts:
    """Facts about ``model.path``, from its config alone.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: its config cannot be read, states no window, or is that of a model that cannot be extended.
    """
    config = Path(model.path, "config.json")
    changed = config.stat().st_mtime_ns if config.is_file() else 0
    return _read_facts(model.path, model.start, model.original_length, model.trust_remote_code, changed)


@cache
def _read_facts(path: str, start: str, original_length: int | None, trust_remote_code: bool, changed: int) -> Facts:
    # Late, because transformers takes seconds to import, and most configurations leave nothing to follow.
    from ropewalk.models.head import keeps_documents_apart
    from ropewalk.models.published import empty_model, published_scaling, read_config

    published = published_scaling(path, original_length=original_length, trust_remote_code=trust_remote_code)
    window = published.shape.original_length
    if start == "checkpoint" and published.start is not None:
        window = published.start.lengths[-1]
    config = read_config(path, trust_remote_code=trust_remote_code)
    model = empty_model(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    parameters = sum(weight.numel() for weight in model.parameters())
    return Facts(window, parameters, text.num_hidden_layers, text.hidden_size, keeps_documents_apart(text))


def has_gpu() -> bool:
    # Late, as above.
    import torch

    return torch.cuda.is_available()


def device_memory(gib: float | None, *, on_gpu: bool) -> float:
    """Bytes of memory of a device with ``gib`` GiB, or else of this machine's GPU or of the machine itself."""
    if gib is not None:
        return gib * 2**30
    if on_gpu:
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
