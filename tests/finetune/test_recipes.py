"""Every recipe of conf/experiment trains two steps a stage on a tiny stand-in of its architecture."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from ropewalk.composition import checked, register
from ropewalk.config import Config, FinetuneStepConfig
from ropewalk.finetune.schedule import scaling_of, schedule_steps, train_model
from ropewalk.models.base import describe, load_model, trained_under
from ropewalk.rope import RopeScaling
from tiny_models import WINDOW, byte_tokenizer, tiny_llama, tiny_mistral
from tiny_runs import token_store
from workspace import ROOT

# Grouped-query attention, its base and its three-way split of heads as in the real ones, only smaller.
STAND_INS: dict[str, Callable[[], Any]] = {
    "demo": lambda: tiny_llama(attention_bias=True, tie_word_embeddings=True),
    "llama2_7b_2048k": lambda: tiny_llama(num_key_value_heads=4),
    "mistral_7b_2048k": lambda: tiny_mistral(
        sliding_window=WINDOW // 2, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
    ),
    "llama3_8b_128k": lambda: tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
    "single_gpu": lambda: tiny_llama(num_key_value_heads=4),
}


def recipe(name: str) -> Config:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return checked(compose("config", [f"experiment={name}", "output=out", "work=work"]))


def smaller(step: FinetuneStepConfig, window: int) -> FinetuneStepConfig:
    """For a window of 64: rows of at most four windows, two steps, two rows."""
    length = WINDOW * min(max(step.length // window, 1), 4)
    scaling_length = step.scaling_length and WINDOW * step.scaling_length // window
    return replace(step, length=length, steps=min(step.steps, 2), batch_size=2, scaling_length=scaling_length)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_recipe_trains_a_stand_in(tmp_path: Path, name: str) -> None:
    config = recipe(name)
    window = config.model.original_length or 256
    finetune = replace(
        config.finetune,
        first=smaller(config.finetune.first, window),
        second=smaller(config.finetune.second, window),
        recall_share=0.0,
    )
    config = replace(config, finetune=finetune, inputs=str(tmp_path))
    STAND_INS[name]().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    token_store(tmp_path / "tokens" / "train")
    path, start, searched = tmp_path / "base", None, {}
    base = describe(load_model(str(path)), name=name, path=str(path), original_length=WINDOW, start="plain")
    for length in config.extension.search_first.lengths:
        target = WINDOW * length // window
        searched[target] = RopeScaling(tuple(1.0 + i for i in range(8)), WINDOW, target)
    for part in ("first", "second"):
        before = load_model(str(path)).model.layers[0].self_attn.q_proj.weight
        rows = train_model(
            str(path),
            schedule_steps(config, part, partial(scaling_of, searched=searched, shape=base.shape)),
            config,
            base,
            state_folder=tmp_path / "state" / part,
            checkpoint=tmp_path / part,
            start=start,
        )
        steps = getattr(finetune, part).steps
        assert len(rows[part]) == steps
        path = tmp_path / part
        after = load_model(str(path), dtype=config.model.dtype).model.layers[0].self_attn.q_proj.weight
        assert torch.equal(before.to(after.dtype), after) == (steps == 0)
        start = trained_under(path)
    assert start is not None
    assert start.target_length == WINDOW * config.extension.target // window
    assert load_model(str(path)).config.get_text_config().to_dict().get("sliding_window") is None


def test_the_papers_schedules_are_exact() -> None:
    """LongRoPE, App. A."""
    llama = recipe("llama2_7b_2048k")
    assert [
        (s.length, s.steps, s.batch_size, s.learning_rate, s.decay, s.warmup_steps)
        for s in llama.finetune.schedule.values()
    ] == [
        (131_072, 400, 32, 2e-5, "linear", 20),
        (262_144, 600, 32, 2e-5, "linear", 20),
    ]
    mistral = recipe("mistral_7b_2048k").finetune
    assert (mistral.first.length, mistral.first.steps, mistral.first.batch_size) == (16_384, 400, 64)
    assert (mistral.first.learning_rate, mistral.first.decay, mistral.second.steps) == (1e-6, "constant", 0)
    for config in (llama.finetune, mistral):
        assert (config.gradient_clip, config.weight_decay, config.precision) == (1.0, 0.0, "bf16-mixed")
        assert config.recall_share == config.short_share == config.lora.rank == 0
    assert [llama.extension.search_first.lengths[-1], llama.extension.second_target] == [262_144, 2_097_152]
