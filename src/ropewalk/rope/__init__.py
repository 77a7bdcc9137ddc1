"""RopeScaling, the methods that make one, and the rotary module that applies it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ropewalk.rope import methods
from ropewalk.rope.length_switch import LengthSwitch
from ropewalk.rope.scaling import RopeScaling

if TYPE_CHECKING:
    from ropewalk.rope.embedding import RotaryEmbedding
    from ropewalk.rope.learned import LearnedScaling
    from ropewalk.rope.rotary import (
        RotaryShape,
        current_scaling,
        extend,
        extended,
        find_rotary,
        model_scaling,
        rotary_of_config,
        rotary_shape,
    )

__all__ = [
    "LearnedScaling",
    "LengthSwitch",
    "RopeScaling",
    "RotaryEmbedding",
    "RotaryShape",
    "current_scaling",
    "extend",
    "extended",
    "find_rotary",
    "methods",
    "model_scaling",
    "rotary_of_config",
    "rotary_shape",
]


def __getattr__(name: str) -> Any:
    # Late, so that the configuration can read the methods' names without importing torch.
    if name in __all__:
        modules = {"LearnedScaling": "learned", "RotaryEmbedding": "embedding"}
        return getattr(import_module(f"ropewalk.rope.{modules.get(name, 'rotary')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
