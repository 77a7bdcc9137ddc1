"""A schedule is any list of steps, each from the last one's weights, under the scaling that it names."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from ropewalk.composition import checked, register
from ropewalk.config import Config, FinetuneConfig, FinetuneStepConfig, LoraConfig
from ropewalk.finetune import schedule
from ropewalk.finetune.schedule import (
    Rows,
    TrainingStep,
    control_step,
    scaling_of,
    schedule_steps,
    searched_steps,
    train_baseline,
    train_control,
    train_model,
    train_steps,
)
from ropewalk.finetune.train import finetune, save_checkpoint
from ropewalk.models.base import describe, load_model, trained_under
from ropewalk.models.factors import SearchedFactors
from ropewalk.rope import RopeScaling, current_scaling, extend, methods, rotary_shape
from tiny_models import WINDOW, byte_tokenizer, tiny_llama, tiny_mistral
from tiny_runs import FINETUNE, SCALING, STEP, token_store
from tolerances import relative_error, rounding
from workspace import ROOT

SHORTER = replace(SCALING, factors=(1.0,) * 4 + (2.0,) * 4, target_length=2 * WINDOW)
SEARCHED = {2 * WINDOW: SHORTER, 4 * WINDOW: SCALING}
EARLY = FinetuneStepConfig(length=48, steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=0, scaling="pi")
MIDDLE = replace(
    EARLY, length=64, steps=3, batch_size=4, scaling="searched", scaling_length=2 * WINDOW, decay="constant"
)
LAST = replace(STEP, length=96, steps=2)
LIST = replace(FINETUNE, before_first=[EARLY, MIDDLE], first=LAST, second=LAST)


def scheduled(
    folder: Path,
    config: FinetuneConfig = LIST,
    *,
    stage: str = "first",
    searched: Mapping[int, RopeScaling] = SEARCHED,
    model: Any = None,
    start: RopeScaling | None = None,
) -> tuple[Any, list[dict[str, float]], RopeScaling]:
    model = model or tiny_llama()
    scaling_for = partial(scaling_of, searched=searched, shape=rotary_shape(tiny_llama()))
    rows, scaling = train_steps(
        model,
        byte_tokenizer(),
        token_store(folder / "store"),
        config,
        # The second part's seed is one more.
        schedule_steps(Config(finetune=config, seed=3 - (stage == "second")), stage, scaling_for),
        state_folder=folder / "state",
        start=start,
    )
    assert scaling is not None
    return model, rows[stage], scaling


def test_each_step_starts_from_the_last_under_its_own_scaling(tmp_path: Path) -> None:
    model, rows, scaling = scheduled(tmp_path)
    by_hand = tiny_llama()
    pi = methods.pi(rotary_dim=16, base=10_000.0, original_length=WINDOW, target_length=4 * WINDOW)
    for number, (step, own) in enumerate(((EARLY, pi), (MIDDLE, SHORTER), (LAST, SCALING))):
        finetune(
            by_hand,
            byte_tokenizer(),
            token_store(tmp_path / "store"),
            step,
            FINETUNE,
            scaling=own,
            seed=3 if step is LAST else 3 + 1000 * (number + 1),
            state_folder=tmp_path / "by hand" / str(number),
            label="by hand",
        )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert scaling == current_scaling(model) == SCALING
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["samples"] for row in rows] == [2, 4, 8, 12, 16, 20, 24]
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([1e-3, 0.5e-3, 1e-3, 1e-3, 1e-3, LAST.learning_rate / 2, LAST.learning_rate])


def test_a_schedule_interrupted_in_its_second_step_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected, _ = scheduled(tmp_path / "whole")
    real, calls = schedule.finetune, []

    def twice(*arguments: Any, **more: Any) -> Any:
        calls.append(more["label"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(schedule, "finetune", twice)
    with pytest.raises(KeyboardInterrupt):
        scheduled(tmp_path / "cut")
    again, rows, _ = scheduled(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_a_stage_of_no_steps_hands_the_model_on(tmp_path: Path) -> None:
    model = tiny_llama()
    before = [parameter.clone() for parameter in model.parameters()]
    _, rows, scaling = scheduled(tmp_path, replace(LIST, second=replace(LAST, steps=0)), stage="second", model=model)
    assert rows == []
    assert scaling == SCALING
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_learned_factors_continue_from_the_last_step(tmp_path: Path) -> None:
    config = replace(LIST, before_first=[], learn_factors=True, factors_learning_rate=0.02)
    model, _, first = scheduled(tmp_path / "first", config)
    assert first != SCALING
    frozen = replace(config, factors_learning_rate=1e-12)
    _, _, second = scheduled(tmp_path / "second", frozen, stage="second", model=model, start=first)
    # A logarithm and its exponential, and a rate too small to move it.
    assert relative_error(second.factors, first.factors) < rounding(2)
    # Learned for another length, they are not taken.
    other = replace(first, target_length=8 * WINDOW)
    _, _, third = scheduled(tmp_path / "third", frozen, stage="second", model=model, start=other)
    assert relative_error(third.factors, SCALING.factors) < rounding(2)


def test_a_checkpoint_says_what_it_was_trained_under(tmp_path: Path) -> None:
    learned = replace(SCALING, factors=(1.0,) * 8)
    save_checkpoint(extend(tiny_llama(), learned), byte_tokenizer(), learned, tmp_path / "plain")
    assert trained_under(tmp_path / "plain") == learned
    assert trained_under(tmp_path / "nowhere") is None


def test_the_scaling_of_a_step(tmp_path: Path) -> None:
    shape = rotary_shape(tiny_llama())
    assert scaling_of(LAST, "k", searched=SEARCHED, shape=shape) == SCALING
    assert scaling_of(MIDDLE, "k", searched=SEARCHED, shape=shape) == SHORTER
    path = tmp_path / "own.json"
    path.write_text(SHORTER.to_json())
    assert scaling_of(replace(LAST, scaling=str(path)), "k", searched=SEARCHED, shape=shape) == SHORTER
    with pytest.raises(FileNotFoundError, match=r"^k\.scaling: .*gone\.json is not there; give a .json or"):
        scaling_of(replace(LAST, scaling="gone.json"), "k", searched=SEARCHED, shape=shape)
    with pytest.raises(ValueError, match=r"^k\.scaling_length must be among the searched \[128, 256\], found 512"):
        scaling_of(replace(LAST, scaling_length=512), "k", searched=SEARCHED, shape=shape)


def test_factors_of_shorter_lengths_are_read_from_the_searchs_file() -> None:
    text = json.dumps({**asdict(SCALING), "shorter": [asdict(SHORTER)], "provenance": {}})
    assert SearchedFactors.from_json(text).by_length == SEARCHED
    assert SearchedFactors.from_json(SCALING.to_json()).by_length == {4 * WINDOW: SCALING}


def test_the_control_reads_as_many_tokens_as_the_whole_schedule() -> None:
    control = control_step(LIST, window=16)
    tokens = sum(step.batch_size * step.length * step.steps for step in LIST.schedule.values())
    assert abs(control.batch_size * 16 * control.steps - tokens) <= control.batch_size * 16 / 2


def test_rows_are_of_the_subsets_that_a_step_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no subset books; it has c4"):
        scheduled(tmp_path, replace(LIST, before_first=[], first=replace(LAST, subsets=["books"])))


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., tuple[Config, dict[str, Any], list[TrainingStep]]]:
    """Makes the configuration of a tiny schedule, what the stage base wrote, and the steps of its first part."""

    def make(model: Any, *overrides: str) -> tuple[Config, dict[str, Any], list[TrainingStep]]:
        folder = tmp_path / "base"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        token_store(tmp_path / "tokens" / "train")
        (tmp_path / "factors.json").write_text(SCALING.to_json())
        register()
        fixed = ("experiment=smoke", "model=hf", f"model.path={folder}", f"inputs={tmp_path}", "output=o", "work=w")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = checked(compose("config", [*fixed, *overrides]))
        base = describe(load_model(str(folder)), name="tiny", path=str(folder), original_length=None)
        finetune_config = replace(LIST, before_first=[])
        config = replace(config, finetune=finetune_config, extension=replace(config.extension, target=256))
        return config, base, searched_steps(config, "first", tmp_path / "factors.json", base.shape)

    return make


def test_ours_the_control_and_the_baselines_are_loaded_and_trained_alike(
    tmp_path: Path, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[dict[str, Any]] = []
    trainings: list[tuple[Any, Any]] = []

    def load(path: str, **options: Any) -> Any:
        loads.append(options)
        return load_model(path, **options)

    def train(model: Any, *arguments: Any, **options: Any) -> list[dict[str, float]]:
        trainings.append((model.config.sliding_window, options["parallel"]))
        return []

    monkeypatch.setattr(schedule, "load_model", load)
    monkeypatch.setattr(schedule, "finetune", train)
    wanted = ("model.keep_sliding_window=true", "model.trust_remote_code=true", "model.dtype=bfloat16", "parallel=ddp")
    config, base, steps = configured(tiny_mistral(sliding_window=16), *wanted, "parallel.devices=2")
    train_model(base.path, steps, config, base, state_folder=tmp_path, checkpoint=None)
    train_control(config, base, state_folder=tmp_path, checkpoint=None)
    train_baseline("yarn", config, base, state_folder=tmp_path, checkpoint=None)
    kept = {"attention": "auto", "keep_sliding_window": True}
    # Weights are trained in the precision's dtype, and those beside adapters in the model's.
    expected = {"dtype": "float32", "trust_remote_code": True, **kept, "device": "cpu"}
    assert loads == [expected] * 3
    adapted = replace(config, finetune=replace(config.finetune, lora=LoraConfig(rank=2)))
    train_model(base.path, [], adapted, base, state_folder=tmp_path, checkpoint=None)
    assert loads[3] == {**expected, "dtype": "bfloat16"}
    assert trainings == [(16, config.parallel)] * 4
    assert config.parallel.devices == 2


def test_a_baseline_is_trained_for_the_steps_of_both_parts_under_its_own_factors(
    tmp_path: Path, configured: Any
) -> None:
    config, base, _ = configured(tiny_llama())
    config = replace(config, finetune=replace(config.finetune, learn_factors=True))
    rows: Rows = train_baseline("pi", config, base, state_folder=tmp_path / "state", checkpoint=tmp_path / "pi")
    assert {part: [row["step"] for row in part_rows] for part, part_rows in rows.items()} == {
        "first": [1, 2],
        "second": [1, 2],
    }
    pi = methods.pi(rotary_dim=16, base=10_000.0, original_length=WINDOW, target_length=4 * WINDOW)
    assert trained_under(tmp_path / "pi") == pi


def test_query_scales_are_folded_into_the_base_model_once_and_trained_without(tmp_path: Path, configured: Any) -> None:
    config, base, _ = configured(tiny_llama())
    scaling = replace(SCALING, query_scales=((0.5, 1.0, 1.5, 2.0), (1.2, 0.8, 1.0, 0.6)))
    (tmp_path / "factors.json").write_text(scaling.to_json())
    still = replace(LAST, steps=0)
    config = replace(config, finetune=replace(config.finetune, first=still, second=still))
    rows = torch.randint(3, 96, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = extend(load_model(base.path), scaling)(rows).logits
    path, start = base.path, None
    for part in ("first", "second"):
        steps = searched_steps(config, part, tmp_path / "factors.json", base.shape)
        options: dict[str, Any] = {"state_folder": tmp_path, "checkpoint": tmp_path / part, "start": start}
        train_model(path, steps, config, base, **options)
        path, start = str(tmp_path / part), trained_under(tmp_path / part)
        assert start == SCALING
        with torch.no_grad():
            logits = extend(load_model(path), start)(rows).logits
        assert relative_error(logits, expected) < rounding(1000)


def test_steps_under_different_query_scales_are_refused(tmp_path: Path, configured: Any) -> None:
    config, base, _ = configured(tiny_llama())
    (tmp_path / "factors.json").write_text(replace(SCALING, query_scales=((2.0,) * 4,) * 2).to_json())
    config = replace(config, finetune=replace(config.finetune, second=replace(LAST, scaling="yarn")))
    with pytest.raises(ValueError, match="its steps name scalings with different query scales"):
        searched_steps(config, "first", tmp_path / "factors.json", base.shape)
