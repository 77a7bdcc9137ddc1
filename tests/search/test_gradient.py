"""The gradient phase: it finds better factors through the frozen model, and resumes exactly after a stop."""

import copy
import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from ropewalk.rope import RopeScaling, RotaryEmbedding, current_scaling, find_rotary
from ropewalk.rope.query_scales import applied_scales
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.space import SearchSpace
from ropewalk.search.token_weights import WeightedRows
from ropewalk.search.warm_start import Step, learn_scaling
from search.test_space import is_feasible
from tiny_models import VOCABULARY, tiny_llama, tiny_rounding
from tiny_runs import EOS, SPACE, tunes
from tolerances import relative_error, rounding

pytestmark = pytest.mark.numeric

NTK = SPACE.published()[1]


def batch(step: int) -> WeightedRows:
    rows = tunes(2, SPACE.target_length, seed=1000 + step)
    rows[:, -1] = EOS
    return WeightedRows(rows)


def learn(model: Any, *, steps: int = 12, space: SearchSpace = SPACE, **more: Any) -> list[Step]:
    options = {"start": space.nearest(NTK), "learning_rate": 0.2, **more}
    return list(learn_scaling(model, space, batch, steps=steps, **options))


def test_it_lowers_the_loss_on_rows_it_did_not_learn_from(trained: Any) -> None:
    fitness = Fitness(trained, (Part(tunes(8, SPACE.target_length, seed=9999)),))
    before = fitness(NTK)
    path = learn(trained, steps=24)
    assert fitness(path[-1][1]) < before - 1
    assert path[-1][0] < path[0][0]
    assert all(is_feasible(point, SPACE) for _, point in path)


def test_the_model_is_left_as_it_was(trained: Any) -> None:
    model = copy.deepcopy(trained)
    model.model.embed_tokens.weight.requires_grad_(False)
    learn(model, steps=3)
    for (name, parameter), expected in zip(model.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert parameter.requires_grad == (name != "model.embed_tokens.weight")
        assert parameter.grad is None
    assert current_scaling(model) == NTK


def test_a_search_stopped_in_the_middle_resumes_exactly(trained: Any) -> None:
    whole: list[str] = []
    undisturbed = learn(trained, keep=whole.append)
    asked: list[int] = []
    states: list[str] = []

    def watched(step: int) -> WeightedRows:
        asked.append(step)
        return batch(step)

    options: dict[str, Any] = {"start": NTK, "learning_rate": 0.2, "steps": 12, "keep": states.append}
    stopped = list(islice(learn_scaling(trained, SPACE, watched, **options), 8))
    resumed = list(learn_scaling(trained, SPACE, watched, **options, kept=states[5 - 1]))
    assert resumed == undisturbed
    assert resumed[:8] == stopped
    assert asked == [*range(8), *range(5, 12)]
    assert states[:8] == whole[:8]
    assert states[8:] == whole[5:]


@pytest.mark.parametrize(("kind", "columns"), [("head", 4), ("pair", 4 * 8)])
def test_query_scales_are_learned_beside_the_factors(trained: Any, kind: str, columns: int) -> None:
    options: dict[str, Any] = {"steps": 24, "learning_rate": 0.1, "query_scales": kind}
    rows = tunes(8, SPACE.target_length, seed=9999)
    path = learn(trained, **options)
    assert applied_scales(trained) is None
    scales = path[-1][1].query_scales
    assert scales is not None
    assert (len(scales), len(scales[0])) == (trained.config.num_hidden_layers, columns)
    fitness = Fitness(trained, (Part(rows),))
    without = fitness(learn(trained, steps=24, learning_rate=0.1)[-1][1])
    assert fitness(path[-1][1]) < without
    states: list[Any] = []
    again = learn(trained, **options, keep=states.append)
    assert again == path
    assert learn(trained, **options, kept=states[11]) == path
    assert [step[1].query_scales for step in learn(trained, steps=2)] == [None, None]


@pytest.mark.parametrize("activation_checkpointing", ["full", "offload"])
def test_recomputed_activations_give_the_same_losses(trained: Any, activation_checkpointing: str) -> None:
    plain = learn(trained, steps=4)
    model, passes = copy.deepcopy(trained), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    recomputed = learn(model, steps=4, activation_checkpointing=activation_checkpointing)
    assert sum(passes) == 2 * 4
    losses, plain_losses = ([loss for loss, _ in steps] for steps in (recomputed, plain))
    assert relative_error(losses, plain_losses) < tiny_rounding(SPACE.target_length)
    assert [point for _, point in recomputed] == [point for _, point in plain]
    assert not model.training
    assert not model.is_gradient_checkpointing


def test_a_fixed_attention_factor_is_not_learned(trained: Any) -> None:
    fixed = 1.17324091
    space = replace(SPACE, attention_factors=(fixed, fixed))
    used = []

    def watched(step: int) -> WeightedRows:
        rotary = find_rotary(trained)[1]
        assert isinstance(rotary, RotaryEmbedding)
        used.append(rotary.attention_factor.item())
        return batch(step)

    start = space.nearest(NTK)
    path = list(learn_scaling(trained, space, watched, start=start, steps=6, learning_rate=0.2))
    assert {point.attention_factor for _, point in path} == {fixed}
    assert relative_error(used, [fixed] * 6) < rounding(1)


def test_the_attention_factor_stays_in_its_bounds(trained: Any) -> None:
    space = replace(SPACE, attention_factors=(1.0, 1.01))
    path = learn(trained, space=space, steps=8, learning_rate=1.0)
    assert all(1.0 <= point.attention_factor <= 1.01 for _, point in path)


def test_what_is_learned_is_put_on_top_of_the_first_scaling(trained: Any) -> None:
    first = RopeScaling((1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6), 64, 128)
    space = replace(SPACE, original_length=128)
    start = space.published()[1]
    path = learn(trained, space=space, start=start, first=first, steps=1)
    assert current_scaling(trained) == first.then(start)
    start_loss = Fitness(trained, (Part(batch(0).rows[:, :-1]),), first)(start)
    assert relative_error(path[0][0], start_loss) < tiny_rounding(SPACE.target_length)


def test_the_end_of_a_row_is_left_out_whatever_the_models_config_says() -> None:
    losses = []
    for eos in (EOS, None, [7, 8], VOCABULARY - 1):
        model = tiny_llama()
        model.config.eos_token_id = eos
        losses.append(learn(model, steps=1)[0][0])
    assert losses == [losses[0]] * 4


def test_a_loss_that_is_not_a_number_gives_one_line() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"loss of gradient step 0 is nan; lower search\.gradient_learning_rate"):
        learn(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_step_that_is_too_long_gives_one_line() -> None:
    with pytest.raises(ValueError, match=r"rescale factors that are not numbers; lower search\.gradient_learning_rate"):
        learn(tiny_llama(), learning_rate=math.inf)
