"""A search without the pipeline, from plain RoPE and from a scaling that the model was trained under."""

from dataclasses import replace

import pytest

from ropewalk.config import FitnessConfig, RaceConfig, SearchConfig
from ropewalk.rope import methods
from ropewalk.search.texts import search_factors
from tiny_models import WINDOW, byte_tokenizer, tiny_llama

CONFIG = SearchConfig(name="short", gradient_steps=1, gradient_batch_size=1, trials=0, documents=1)
TEXT = "The quick brown fox jumps over the lazy dog. " * 8


def test_what_is_found_holds_the_scaling_that_the_model_came_with() -> None:
    start = methods.yarn(rotary_dim=16, base=10_000.0, original_length=WINDOW, target_length=2 * WINDOW)
    model, tokenizer = tiny_llama(vocab_size=300), byte_tokenizer()
    scaling = search_factors(model, tokenizer, [TEXT], target_length=4 * WINDOW, first=start, config=CONFIG)
    assert (scaling.original_length, scaling.target_length) == (WINDOW, 4 * WINDOW)
    assert all(a >= b - 1e-9 for a, b in zip(scaling.factors, start.factors, strict=True))
    assert max(scaling.factors) <= 1.25 * 2 * max(start.factors)
    with pytest.raises(ValueError, match=r"above the model's window of 128 tokens"):
        search_factors(model, tokenizer, [TEXT], target_length=2 * WINDOW, first=start, config=CONFIG)


def test_race_needles_and_longrope2s_space_are_those_of_the_pipeline() -> None:
    texts = [TEXT * 3, TEXT[::-1] * 3]
    config = replace(CONFIG, trials=12, initial_population=6, num_parents=6, documents=2)
    scalings = {
        name: search_factors(
            tiny_llama(vocab_size=300),
            byte_tokenizer(),
            texts,
            target_length=8 * WINDOW,
            config=replace(config, **more),
        )
        for name, more in {
            "plain": {},
            "race": {"race": RaceConfig(blocks=16)},
            "needles": {"fitness": FitnessConfig(needles=1)},
            "critical": {"critical": True},
        }.items()
    }
    assert len(set(scalings.values())) >= 3
    assert 8.0 <= max(scalings["critical"].factors) <= 16.0
    with pytest.raises(ValueError, match="no document has 4096 tokens; the longest has 1081"):
        search_factors(tiny_llama(vocab_size=300), byte_tokenizer(), texts, target_length=4096)
