"""A whole search: what it pays for, what it finds, and that a killed one resumes to the same end."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from processes import fork_until_killed, kill_self
from ropewalk.config import RaceConfig
from ropewalk.rope import RopeScaling, extend
from ropewalk.search import study as study_module
from ropewalk.search.distributed import REASON
from ropewalk.search.evolution import ESTIMATE
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.history import SearchResult
from ropewalk.search.study import Search
from ropewalk.search.token_weights import WeightedRows
from ropewalk.search.warm_start import learn_scaling
from tiny_models import WINDOW, tiny_llama, tiny_rounding, token_rows
from tiny_runs import SEARCH, SPACE, search, token_store
from tolerances import relative_error


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, list[str]]:
    result_and_order: tuple[SearchResult, list[str]] = search(tmp_path_factory.mktemp("undisturbed"))
    return result_and_order


def studied(folder: Path, state: TrialState = TrialState.COMPLETE) -> list[Any]:
    study = optuna.load_study(study_name="rescale-factors", storage=f"sqlite:///{folder / 'state' / 'study.db'}")
    return [trial for trial in study.trials if trial.state == state]


def search_killed_between_parameters(folder: Path, trial: int) -> None:
    """Search until half of the parameters of a trial are set, and kill the process."""
    suggest, parameters = optuna.trial.Trial._suggest, SPACE.pairs + 2
    suggested = []

    def watched(of_trial: optuna.Trial, name: str, distribution: Any) -> Any:
        if len(suggested) == parameters * (trial - 1) + 5:
            kill_self()
        suggested.append(name)
        return suggest(of_trial, name, distribution)

    optuna.trial.Trial._suggest = watched  # type: ignore[method-assign]
    search(folder)


def trials(result: SearchResult) -> list[dict[str, Any]]:
    return [row for row in result.rows if row["phase"] == "evolution"]


def count(reads: list[str], kind: str) -> int:
    return sum(line.startswith(kind) for line in reads)


def test_no_point_is_read_twice(undisturbed: tuple[SearchResult, list[str]]) -> None:
    result, reads = undisturbed
    # The study begins with points that are read already: the gradient's own result and the published methods.
    assert count(reads, "read") == SEARCH.trials
    points = {tuple(v for k, v in row.items() if k.startswith(("lambda_", "n_hat", "att"))) for row in trials(result)}
    assert len(points) == SEARCH.trials
    assert count(reads, "step") == SEARCH.gradient_steps


def test_tokens_are_those_that_were_paid(undisturbed: tuple[SearchResult, list[str]]) -> None:
    result, reads = undisturbed
    of_reads = count(reads, "read") * 2 * SPACE.target_length
    assert result.forward_tokens == of_reads + 3 * SEARCH.gradient_steps * SPACE.target_length
    assert result.rows[-1]["tokens"] == result.forward_tokens


def test_the_best_is_the_lowest_loss_of_all_that_was_read(
    undisturbed: tuple[SearchResult, list[str]], tmp_path: Path
) -> None:
    result, _ = undisturbed
    read = [row for row in result.rows if row["phase"] != "gradient"]
    assert result.loss == min(row["loss"] for row in read)
    rows = torch.from_numpy(token_store(tmp_path / "store").first_tokens(SPACE.target_length, documents=2))
    loss = Fitness(tiny_llama(), (Part(rows),))(result.best)
    assert relative_error(loss, result.loss) < tiny_rounding(SPACE.target_length)


def test_a_second_call_reads_nothing_and_says_the_same(tmp_path: Path) -> None:
    first, reads = search(tmp_path)
    again, reads_again = search(tmp_path)
    assert again == first
    assert reads_again == reads


@pytest.mark.parametrize(
    "kill_at", ["read 1", "step 6", "read 3", "", "read 9"], ids=["before", "gradient", "after", "drawing", "evolution"]
)
def test_a_killed_search_resumes_to_the_same_factors(
    undisturbed: tuple[SearchResult, list[str]], tmp_path: Path, kill_at: str
) -> None:
    result, reads = undisturbed
    fork_until_killed(
        lambda: search(tmp_path, kill_at=kill_at) if kill_at else search_killed_between_parameters(tmp_path, 9)
    )
    resumed, reads_of_both = search(tmp_path)
    assert resumed.best == result.best
    assert resumed.loss == result.loss
    assert resumed.gradient == result.gradient
    assert resumed.rows == result.rows
    assert len(studied(tmp_path)) == SEARCH.trials
    assert count(reads_of_both, "read") <= count(reads, "read") + 1
    assert count(reads_of_both, "step") <= count(reads, "step") + 1


@pytest.mark.parametrize("gradient_steps", [0, 3])
def test_a_model_that_emits_nan_gives_one_line(tmp_path: Path, gradient_steps: int) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="every candidate made the model emit NaN") as raised:
        Search(
            fitness=Fitness(model, (Part(token_rows(SPACE.target_length)),)),
            batch=lambda step: WeightedRows(token_rows(SPACE.target_length)),
            space=SPACE,
            config=replace(SEARCH, gradient_steps=gradient_steps),
            seed=0,
            state_folder=tmp_path,
        ).run()
    assert "\n" not in str(raised.value)


def test_without_trials_the_gradients_result_is_taken(tmp_path: Path) -> None:
    result, reads = search(tmp_path, config=replace(SEARCH, trials=0))
    assert count(reads, "read") == 6
    assert result.loss <= min(row["loss"] for row in result.rows if row["phase"] == "published")


def test_fitness_is_transformers_own_loss() -> None:
    model, rows = tiny_llama(), token_rows(4 * WINDOW, rows=3)
    point = SPACE.published()[2]
    fitness = Fitness(model, (Part(rows),), batch_tokens=4 * WINDOW)
    evaluation = fitness.evaluate(point)
    assert evaluation.forward_tokens == fitness.forward_tokens == rows.numel()
    with torch.no_grad():
        expected = extend(tiny_llama(), point)(rows, labels=rows).loss.item()
    assert relative_error(evaluation.loss, expected) < tiny_rounding(4 * WINDOW)


SHORT = replace(SEARCH, gradient_steps=0, trials=13, initial_population=5, population_size=3, num_parents=3)


@pytest.mark.parametrize("sampler", ["paper", "cmaes", "tpe", "random"])
def test_every_sampler_resumes_exactly_after_a_kill(tmp_path: Path, sampler: str) -> None:
    config = replace(SHORT, sampler=sampler)
    result, reads = search(tmp_path / "whole", config=config)
    fork_until_killed(lambda: search(tmp_path / "cut", config=config, kill_at="read 11"))
    resumed, reads_of_both = search(tmp_path / "cut", config=config)
    assert (resumed.best, resumed.loss, resumed.rows) == (result.best, result.loss, result.rows)
    assert count(reads_of_both, "read") <= count(reads, "read") + 1


def test_a_killed_race_resumes_exactly(tmp_path: Path) -> None:
    config = replace(SHORT, race=RaceConfig(blocks=16))
    result, _ = search(tmp_path / "whole", config=config)
    fork_until_killed(lambda: search(tmp_path / "cut", config=config, kill_at="read 8"))
    resumed, _ = search(tmp_path / "cut", config=config)
    assert (resumed.best, resumed.rows, resumed.saved_tokens) == (result.best, result.rows, result.saved_tokens)


def test_a_budget_in_tokens_ends_a_search_and_a_larger_one_resumes(tmp_path: Path) -> None:
    evaluation = 2 * SPACE.target_length
    result, _ = search(tmp_path, config=replace(SHORT, budget_tokens=5 * evaluation - 1))
    assert (len(trials(result)), result.forward_tokens) == (5, 5 * evaluation)
    result, reads = search(tmp_path, config=replace(SHORT, budget_tokens=7 * evaluation))
    assert (len(trials(result)), count(reads, "read")) == (7, 7)


def test_a_gradient_step_counts_as_three_forward_passes_of_the_budget(tmp_path: Path) -> None:
    config = replace(SEARCH, budget_tokens=(5 * 2 + 3 * 8 + 2 + 1) * SPACE.target_length)
    result, reads = search(tmp_path, config=config)
    assert count(reads, "step") == SEARCH.gradient_steps
    # Seeds and published methods that are known already cost nothing; one trial is read.
    assert count(reads, "read") == 6 + 1
    assert result.forward_tokens == (5 * 2 + 3 * 8 + 2 + 2) * SPACE.target_length


def test_patience_ends_a_search_that_gains_nothing_more(tmp_path: Path) -> None:
    config = replace(SHORT, trials=60, patience=6, min_delta=0.001)
    result, _ = search(tmp_path, config=config)
    losses = [row["loss"] for row in trials(result)]
    assert len(losses) < 60
    best, last = math.inf, 0
    for number, loss in enumerate(losses):
        if loss < best - 0.001:
            best, last = loss, number
    assert len(losses) - 1 - last == 6


def test_the_gradient_begins_from_the_best_start_or_without_starts_from_its_own(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from: list[RopeScaling] = []

    def learn(*arguments: Any, start: RopeScaling, **options: Any) -> Any:
        learned_from.append(start)
        return learn_scaling(*arguments, start=start, **options)

    monkeypatch.setattr(study_module, "learn_scaling", learn)
    config = replace(SHORT, gradient_steps=1)
    given = tuple(replace(point, attention_factor=1.3) for point in SPACE.published())
    for starts in ((), given):
        result, _ = search(tmp_path / str(len(starts)), model=trained, config=config, starts=starts)
        read = [row for row in result.rows if row["phase"] == "published"]
        losses = {point: row["loss"] for point, row in zip(starts or (SPACE.start(),), read, strict=False)}
        assert learned_from[-1] == min(losses, key=losses.__getitem__)
        assert starts or losses[SPACE.start()] > min(row["loss"] for row in read)


def test_a_trial_that_emits_nan_fails_with_its_reason_and_is_never_best(tmp_path: Path) -> None:
    # cos and sin times 1e30: attention scores overflow.
    space = replace(SPACE, attention_factors=(0.9, 1e30))
    start = replace(space.published()[2], attention_factor=1e30)
    for folder, config in (("trials", SHORT), ("both", replace(SHORT, gradient_steps=1))):
        result, _ = search(tmp_path / folder, space=space, config=config, starts=(start,))
        bad = [row for row in result.rows if row["attention_factor"] > 1e20]
        assert bad
        reason = "the model emitted NaN or infinite losses"
        assert {(row["state"], row["loss"], row["reason"]) for row in bad} == {("FAIL", None, reason)}
        assert math.isfinite(result.loss)
        assert result.best.attention_factor < 1e20
        assert len(trials(result)) == config.trials
        study = optuna.load_study(
            study_name="rescale-factors", storage=f"sqlite:///{tmp_path / folder / 'state' / 'study.db'}"
        )
        failed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
        assert failed
        assert {trial.user_attrs[REASON] for trial in failed} == {"the model emitted NaN or infinite losses"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"identity": {"model_hash": "b"}}, "model_hash"), ({"documents": 3}, "data_hash"), ({"seed": 4}, "seed")],
)
def test_a_study_of_something_else_under_the_same_name_is_refused(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    first = {"identity": {"model_hash": "a"}}
    search(tmp_path, config=replace(SHORT, trials=2), **first)
    with pytest.raises(ValueError, match=f"the study rescale-factors in search.storage is of another .*{named}"):
        search(tmp_path, config=replace(SHORT, trials=2), **{**first, **changed})


@pytest.mark.parametrize(
    "changed", [{"knots": 4}, {"race": RaceConfig(blocks=16)}, {"gradient_learning_rate": 0.5}, {"num_parents": 2}]
)
def test_a_study_resumes_under_its_own_settings_alone(tmp_path: Path, changed: dict[str, Any]) -> None:
    config = replace(SHORT, trials=2, sampler="tpe")
    search(tmp_path, config=config)
    with pytest.raises(ValueError, match="is of another settings"):
        search(tmp_path, config=replace(config, **changed))
    # What says where it runs, in what memory and how far may change.
    further = replace(config, trials=3, heartbeat_seconds=7, batch_tokens=512, patience=9)
    assert len(trials(search(tmp_path, config=further)[0])) == 3


def test_a_budget_that_does_not_cover_the_beginning_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    needed = (5 * 2 + 3 * 8 + 2) * SPACE.target_length
    (tmp_path / "reads").touch()
    message = rf"search\.budget_tokens must cover .* 8 gradient steps\), {needed:,} tokens, found {needed - 1:,};"
    with pytest.raises(ValueError, match=message):
        search(tmp_path, config=replace(SEARCH, budget_tokens=needed - 1))
    assert not (tmp_path / "reads").read_text()
    result, _ = search(tmp_path, config=replace(SEARCH, budget_tokens=needed))
    assert result.forward_tokens == needed
    assert not trials(result)


def test_a_mix_is_the_weighted_mean_of_transformers_own_losses() -> None:
    model, rows = tiny_llama(), token_rows(4 * WINDOW, rows=3)
    parts = (Part(rows, 0.5), Part(rows[:, :128], 0.3), Part(rows[:, :64], 0.2))
    point = SPACE.published()[1]
    evaluation = Fitness(model, parts).evaluate(point)
    with torch.no_grad():
        losses = [extend(tiny_llama(), point)(part.rows, labels=part.rows).loss.item() for part in parts]
    expected = sum(part.weight * loss for part, loss in zip(parts, losses, strict=True))
    assert relative_error(evaluation.loss, expected) < tiny_rounding(4 * WINDOW)
    assert evaluation.forward_tokens == 3 * (256 + 128 + 64)
    blocks = Fitness(model, parts, blocks=8).evaluate(point, hopeless=lambda blocks: False).blocks
    assert sum(blocks.values()) / len(blocks) == pytest.approx(expected, abs=1e-2)


def test_the_order_and_the_passes_of_a_race_do_not_change_the_loss() -> None:
    rows = token_rows(4 * WINDOW, rows=3)
    point = SPACE.published()[1]
    plain = Fitness(tiny_llama(), (Part(rows),)).evaluate(point)
    race = Fitness(tiny_llama(), (Part(rows),), blocks=8, shorter=(0.25,), seed=1)
    evaluation = race.evaluate(point, hopeless=lambda blocks: False)
    assert relative_error(evaluation.loss, plain.loss) < tiny_rounding(4 * WINDOW)
    assert evaluation.forward_tokens == 3 * (64 + 256)
    assert sorted(evaluation.blocks) == list(range(2 * 3 * 8))
    whole = [evaluation.blocks[number] for number in range(24, 48)]
    assert sum(whole) / 24 == pytest.approx(plain.loss, abs=1e-2)


def test_what_early_looks_cost_is_taken_off_what_a_race_saves(tmp_path: Path) -> None:
    config = replace(SEARCH, race=RaceConfig(blocks=16, shorter=[0.25]))
    result, _ = search(tmp_path, config=config)
    of_reads = result.forward_tokens - 3 * SEARCH.gradient_steps * SPACE.target_length
    reads = sum(row["phase"] != "gradient" for row in result.rows) - 6  # points that were known before their trial
    assert result.saved_tokens == reads * 2 * SPACE.target_length - of_reads


def test_hopeless_candidates_are_stopped_early_and_the_winner_is_no_worse(trained: Any, tmp_path: Path) -> None:
    config = replace(SHORT, trials=40, initial_population=8, population_size=8, num_parents=8)
    options: dict[str, Any] = {"model": trained, "documents": 4}
    plain, _ = search(tmp_path / "plain", config=config, **options)
    racing = replace(config, trials=200, budget_tokens=plain.forward_tokens, race=RaceConfig(blocks=8))
    race, _ = search(tmp_path / "race", config=racing, **options)
    stopped = [row for row in race.rows if row["state"] == "PRUNED"]
    assert len(stopped) >= 20
    estimates = [trial.user_attrs.get(ESTIMATE) for trial in studied(tmp_path / "race", TrialState.PRUNED)]
    assert len(estimates) == len(stopped)
    assert None not in estimates
    assert all(row["loss"] is None for row in stopped)
    assert race.saved_tokens == len(race.rows) * 4 * SPACE.target_length - race.forward_tokens > 0
    assert race.loss == min(row["loss"] for row in race.rows if row["state"] == "COMPLETE")
    # For the same tokens it looks at twice as many candidates, and finds one as good.
    assert len(race.rows) > 2 * len(plain.rows)
    assert race.loss <= plain.loss + 0.001
    # What was stopped would not have been the best: read whole, hardly any is below the best of its time.
    rows = torch.from_numpy(token_store(tmp_path / "store").first_tokens(SPACE.target_length, documents=4))
    fitness = Fitness(trained, (Part(rows),))
    whole = [
        fitness(
            SPACE.point(
                np.asarray([row[f"lambda_{pair:02d}"] for pair in range(8)]), row["n_hat"], row["attention_factor"]
            )
        )
        for row in stopped[:40]
    ]
    wrong = sum(loss < row["best"] for loss, row in zip(whole, stopped, strict=False))
    assert wrong <= 2
    # And the estimates that make parents of them tell good ones from bad ones.
    assert np.corrcoef(whole, estimates[:40])[0, 1] > 0.9
