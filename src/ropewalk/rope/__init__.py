"""RopeScaling, the methods that make one, and the rotary module that applies it."""

from ropewalk.rope import methods
from ropewalk.rope.learned import LearnedScaling
from ropewalk.rope.rotary import RotaryEmbedding, RotaryShape, current_scaling, extend, find_rotary, rotary_shape
from ropewalk.rope.scaling import (
    LengthSwitch,
    RopeScaling,
    scaling_for_length,
    switch_from_json,
    switch_to_json,
)

__all__ = [
    "LearnedScaling",
    "LengthSwitch",
    "RopeScaling",
    "RotaryEmbedding",
    "RotaryShape",
    "current_scaling",
    "extend",
    "find_rotary",
    "methods",
    "rotary_shape",
    "scaling_for_length",
    "switch_from_json",
    "switch_to_json",
]
