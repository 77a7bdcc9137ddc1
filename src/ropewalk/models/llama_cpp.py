"""The model types that llama.cpp computes as transformers does, and which of them it applies rescale factors to.

Taken from its ``src/models/*.cpp``: a graph that does not call ``get_rope_factors`` ignores the tensors of factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    name: str
    applies_factors: bool
    """Whether it divides each frequency by its own factor; otherwise, only linear scaling, YaRN and the base apply."""
    rotates_neighbours: bool = False
    """Whether it rotates pairs of neighbouring dimensions, so that rows of queries and keys are written interleaved."""
    has_rope_freqs: bool = False
    """Whether it reads a single set of factors, for every length, as ``rope_freqs``."""
    partial_rotary: bool = False
    norm_offset: float = 0.0
    """What transformers adds to the weights of norms."""
    activations: tuple[str, ...] = ("silu", "swish")


_LLAMA = Architecture("llama", applies_factors=True, rotates_neighbours=True, has_rope_freqs=True)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": Architecture("phi3", applies_factors=True, partial_rotary=True),
    "qwen2": Architecture("qwen2", applies_factors=False),
    "qwen3": Architecture("qwen3", applies_factors=False),
    "gemma": Architecture(
        "gemma", applies_factors=False, norm_offset=1.0, activations=("gelu", "gelu_pytorch_tanh", "gelu_new")
    ),
}
"""By transformers' model_type."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture as which llama.cpp computes a model.

    Args:
        config: contents of its config.json.

    Raises:
        ValueError: llama.cpp computes this model otherwise than transformers, or not at all; the message is the reason.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ValueError(f"it is of type {kind}; a GGUF export is for {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[kind]
    if config.get("sliding_window"):
        raise ValueError(f"it has sliding-window attention, which GGUF's {architecture.name} does not have")
    activation = config.get("hidden_act") or architecture.activations[0]
    if activation not in architecture.activations:
        raise ValueError(f"its activation is {activation}, that of GGUF's {kind} {architecture.activations[0]}")
    return architecture
