"""Every recipe of conf/experiment trains a tiny stand-in, and moves its weights as float32 and plain AdamW do."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from ropewalk.composition import checked, register
from ropewalk.config import Config, FinetuneConfig, FinetuneStepConfig
from ropewalk.finetune.module import FinetuneModule, make_optimizer
from ropewalk.finetune.schedule import scaling_of, schedule_steps, train_model
from ropewalk.models.base import describe, load_model, trained_under
from ropewalk.models.loss import token_losses
from ropewalk.rope import RopeScaling
from tiny_models import WINDOW, byte_tokenizer, tiny_llama, tiny_mistral
from tiny_runs import token_store, train, tunes
from tolerances import relative_error
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


STEPS = 20
NAMES = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if path.stem != "smollm2")
"""All but the one that trains nothing."""

Weights = dict[str, torch.Tensor]


def model_of(dtype: torch.dtype) -> Any:
    """Weights of the size that a trained model's have: norms of 1, matrices of 0.02."""
    return tiny_llama(initializer_range=0.02).to(dtype)


def trained_steps(config: FinetuneConfig) -> Iterator[FinetuneStepConfig]:
    """The steps of a recipe with rates of their own, on short rows."""
    steps = {step.learning_rate: step for step in config.schedule.values() if step.steps}
    for step in steps.values():
        yield replace(step, length=48, steps=STEPS, batch_size=2, warmup_steps=2)


def moved(folder: Path, step: FinetuneStepConfig, config: FinetuneConfig, dtype: torch.dtype) -> Weights:
    """What the training adds to each kind of trained weights, such as norm or q_proj.lora_A, by name."""
    seen: list[Weights] = []

    def note(module: FinetuneModule) -> None:
        trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        seen.append({name: weight.detach().double().clone() for name, weight in trained.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneModule, "on_train_start", note)
        patch.setattr(FinetuneModule, "on_train_end", note)
        folder.mkdir()
        train(folder, step=step, config=config, model=model_of(dtype))
    before, after = seen
    return by_kind({name: after[name] - before[name] for name in before})


def by_kind(weights: Weights) -> Weights:
    """Those of all layers in one row, by kind: norm, q_proj, q_proj.lora_A ..."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights.items():
        parts = [part for part in name.split(".") if part not in ("weight", "default")]
        kinds.setdefault(".".join(parts[-2:]) if "lora" in name else parts[-1], []).append(weight.flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


def share_moved(change: torch.Tensor) -> float:
    return float((change != 0).double().mean())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_moves_every_kind_of_weights_as_float32_does(tmp_path: Path, name: str) -> None:
    whole = recipe(name)
    recipes = whole.finetune
    assert whole.extension.way != "untrained"
    # What auto takes on a GPU; rows of two windows and recall documents are not what this is about.
    precision = "bf16-mixed" if recipes.precision == "auto" else recipes.precision
    tried = replace(
        recipes, precision=precision, short_share=0.0, recall_share=0.0, micro_batch_size=None, positions_every=0
    )
    plain = replace(tried, precision="32-true", optimizer="adamw", activation_checkpointing="none")
    dtype = getattr(torch, recipes.weights_dtype(whole.model.dtype))
    for number, step in enumerate(trained_steps(recipes)):
        found = moved(tmp_path / f"{number}", step, tried, dtype)
        expected = moved(tmp_path / f"{number} plain", step, plain, torch.float32)
        assert found.keys() == expected.keys()
        kinds = {"embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"}
        if recipes.lora.rank:
            kinds |= {f"{part}_proj.lora_{side}" for part in "qkvo" for side in "AB"}
        else:
            kinds |= {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")} | {"lm_head"}
        assert found.keys() >= kinds
        for kind, change in found.items():
            assert share_moved(change) > 0.99 * share_moved(expected[kind]) > 0, kind
            assert relative_error(change, expected[kind]) < 0.1, kind


def test_weights_in_bfloat16_do_not_move_as_float32_ones_do_and_are_refused(tmp_path: Path) -> None:
    """At 2e-5: steps are smaller than half of the distance of two numbers, but for the smallest weights."""
    rate, changes = 2e-5, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(dtype)
        before = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
        optimizer = make_optimizer("adamw", [{"params": list(model.parameters()), "lr": rate}], weight_decay=0.0)
        for _ in range(STEPS):
            token_losses(model, tunes(2, 48, seed=0)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        changes[dtype] = by_kind({name: weight - before[name] for name, weight in model.named_parameters()})
    for kind, change in changes[torch.float32].items():
        lost = changes[torch.bfloat16][kind]
        assert share_moved(lost) < (0.01 if "norm" in kind else 0.5) * share_moved(change), kind
        assert relative_error(lost, change) > 0.5, kind
    config = recipe("llama2_7b_2048k").finetune
    with pytest.raises(ValueError, match=r"^weights must be trained in float32, found torch\.bfloat16, .*float32"):
        moved(tmp_path / "half", next(trained_steps(config)), config, torch.bfloat16)
