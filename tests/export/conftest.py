"""Tiny random models of three families, a tokenizer and a length switch with n_hat."""

from typing import Any

import pytest

from ropewalk.rope import LengthSwitch, RopeScaling, rotary_shape
from tiny_models import ROPE_MODELS, WINDOW, byte_tokenizer, tiny_llama


@pytest.fixture(params=["llama", "qwen3", "phi3"])
def model(request: pytest.FixtureRequest) -> Any:
    return ROPE_MODELS[request.param]()


@pytest.fixture
def llama() -> Any:
    return tiny_llama()


@pytest.fixture
def tokenizer() -> Any:
    return byte_tokenizer()


def switch_for(model: Any, *, n_hat: int) -> LengthSwitch:
    """Two scalings: up to twice the window, and beyond up to eight times."""
    pairs = rotary_shape(model).rotary_dim // 2
    short = RopeScaling(tuple(1 + 0.2 * pair for pair in range(pairs)), WINDOW, 2 * WINDOW, 0, 1.05)
    long = RopeScaling(tuple(1 + 0.9 * pair for pair in range(pairs)), WINDOW, 8 * WINDOW, n_hat, 1.2)
    return LengthSwitch(((2 * WINDOW, short), (8 * WINDOW, long)))


def long_switch_for(model: Any) -> LengthSwitch:
    """Four scalings that change at half the window, the window and twice the window, three of them with n_hat."""
    pairs = rotary_shape(model).rotary_dim // 2
    lengths = (WINDOW // 2, WINDOW, 2 * WINDOW, 8 * WINDOW)
    steps = (0.0, 0.3, 0.9, 2.0)
    scalings = [
        RopeScaling(
            tuple(1 + step * pair for pair in range(pairs)),
            WINDOW,
            max(length, WINDOW),
            n_hat=2 * place,
            attention_factor=1 + 0.1 * place,
        )
        for place, (length, step) in enumerate(zip(lengths, steps, strict=True))
    ]
    return LengthSwitch(tuple(zip(lengths, scalings, strict=True)))
