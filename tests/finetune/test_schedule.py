"""A schedule is any list of steps, each from the last one's weights, under the scaling that it names."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.config import FinetuneConfig, FinetuneStepConfig
from ropewalk.finetune import schedule
from ropewalk.finetune.schedule import scaling_of, searched_scalings, train_schedule
from ropewalk.finetune.train import control_step, finetune, save_checkpoint
from ropewalk.models.base import trained_under
from ropewalk.rope import RopeScaling, current_scaling, extend, methods, rotary_shape
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from tiny_runs import FINETUNE, SCALING, STEP, token_store

SHORTER = replace(SCALING, factors=(1.0,) * 4 + (2.0,) * 4, target_length=2 * WINDOW)
SEARCHED = {2 * WINDOW: SHORTER, 4 * WINDOW: SCALING}
EARLY = FinetuneStepConfig(length=48, steps=2, rows=2, learning_rate=1e-3, warmup_steps=0, scaling="pi")
MIDDLE = replace(EARLY, length=64, steps=3, rows=4, scaling="searched", scaling_length=2 * WINDOW, decay="constant")
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
    rows, scaling = train_schedule(
        model,
        byte_tokenizer(),
        token_store(folder / "store"),
        config,
        stage=stage,
        searched=searched,
        shape=rotary_shape(tiny_llama()),
        seed=3,
        state_folder=folder / "state",
        start=start,
    )
    return model, rows, scaling


def test_each_step_goes_on_from_the_last_under_its_own_scaling(tmp_path: Path) -> None:
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


def test_learned_factors_go_on_from_the_last_step(tmp_path: Path) -> None:
    config = replace(LIST, before_first=[], learn_factors=True, factors_learning_rate=0.02)
    model, _, first = scheduled(tmp_path / "first", config)
    assert first != SCALING
    frozen = replace(config, factors_learning_rate=1e-12)
    _, _, second = scheduled(tmp_path / "second", frozen, stage="second", model=model, start=first)
    assert second.factors == pytest.approx(first.factors, rel=1e-5)
    # Learned for another length, they are not taken.
    other = replace(first, target_length=8 * WINDOW)
    _, _, third = scheduled(tmp_path / "third", frozen, stage="second", model=model, start=other)
    assert third.factors == pytest.approx(SCALING.factors, rel=1e-5)


def test_a_checkpoint_says_what_it_was_trained_under(tmp_path: Path) -> None:
    learned = replace(SCALING, factors=(1.0,) * 8)
    save_checkpoint(extend(tiny_llama(), learned), byte_tokenizer(), learned, tmp_path / "plain")
    assert trained_under(tmp_path / "plain") == learned
    assert trained_under(tmp_path / "plain", short=True) is None
    save_checkpoint(tiny_llama(), byte_tokenizer(), learned, tmp_path / "mixed", mixed=True)
    assert trained_under(tmp_path / "mixed", short=True) == RopeScaling((1.0,) * 8, WINDOW, WINDOW)
    assert trained_under(tmp_path / "nowhere") is None


def test_the_scaling_of_a_step(tmp_path: Path) -> None:
    shape = rotary_shape(tiny_llama())
    assert scaling_of(LAST, SEARCHED, shape, key="k") == SCALING
    assert scaling_of(MIDDLE, SEARCHED, shape, key="k") == SHORTER
    path = tmp_path / "own.json"
    path.write_text(SHORTER.to_json())
    assert scaling_of(replace(LAST, scaling=str(path)), SEARCHED, shape, key="k") == SHORTER
    with pytest.raises(FileNotFoundError, match=r"^k\.scaling: .*gone\.json is not there; give a .json or"):
        scaling_of(replace(LAST, scaling="gone.json"), SEARCHED, shape, key="k")
    with pytest.raises(ValueError, match=r"^k\.scaling_length must be among the searched \[128, 256\], found 512"):
        scaling_of(replace(LAST, scaling_length=512), SEARCHED, shape, key="k")


def test_factors_of_shorter_lengths_are_read_from_the_searchs_file() -> None:
    text = json.dumps({**asdict(SCALING), "shorter": [asdict(SHORTER)], "provenance": {}})
    assert searched_scalings(text) == SEARCHED
    assert searched_scalings(SCALING.to_json()) == {4 * WINDOW: SCALING}


def test_the_control_reads_as_many_tokens_as_the_whole_schedule() -> None:
    control = control_step(LIST, window=16)
    tokens = sum(step.rows * step.length * step.steps for step in LIST.schedule.values())
    assert abs(control.rows * 16 * control.steps - tokens) <= control.rows * 16 / 2


def test_rows_are_of_the_subsets_that_a_step_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no subset books; it has c4"):
        scheduled(tmp_path, replace(LIST, before_first=[], first=replace(LAST, subsets=["books"])))
