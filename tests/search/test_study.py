"""A whole search: what it pays for, what it finds, and that a killed one goes on to the same end."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from processes import run_until_killed
from ropewalk.rope import extend
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.history import SearchResult
from ropewalk.search.study import Search
from tiny_models import WINDOW, tiny_llama, token_rows
from tiny_runs import SEARCH, SPACE, search, token_store

KILLED = """
import sys
from pathlib import Path
from tiny_runs import search
search(Path(sys.argv[1]), kill_at=sys.argv[2])
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, list[str]]:
    found: tuple[SearchResult, list[str]] = search(tmp_path_factory.mktemp("undisturbed"))
    return found


def finished_trials(folder: Path) -> list[Any]:
    study = optuna.load_study(study_name="rescale-factors", storage=f"sqlite:///{folder / 'state' / 'study.db'}")
    return [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]


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
    assert Fitness(tiny_llama(), (Part(rows),))(result.best) == pytest.approx(result.loss, abs=1e-6)


def test_a_second_call_reads_nothing_and_says_the_same(tmp_path: Path) -> None:
    first, reads = search(tmp_path)
    again, reads_again = search(tmp_path)
    assert again == first
    assert reads_again == reads


@pytest.mark.parametrize("kill_at", ["read 3", "step 6", "read 9"], ids=["before", "gradient", "evolution"])
def test_a_killed_search_goes_on_to_the_same_factors(
    undisturbed: tuple[SearchResult, list[str]], tmp_path: Path, kill_at: str
) -> None:
    result, reads = undisturbed
    run_until_killed(KILLED, tmp_path, kill_at)
    resumed, reads_of_both = search(tmp_path)
    assert resumed.best == result.best
    assert resumed.loss == result.loss
    assert resumed.seed == result.seed
    assert resumed.rows == result.rows
    assert len(finished_trials(tmp_path)) == SEARCH.trials
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
            batch=lambda step: token_rows(SPACE.target_length),
            space=SPACE,
            config=replace(SEARCH, gradient_steps=gradient_steps),
            seed=0,
            state_folder=tmp_path,
        ).run()
    assert "\n" not in str(raised.value)


def test_without_trials_the_gradients_result_is_taken(tmp_path: Path) -> None:
    result, reads = search(tmp_path, config=replace(SEARCH, trials=0))
    assert count(reads, "read") == 4
    assert result.loss <= min(row["loss"] for row in result.rows if row["phase"] == "published")


def test_fitness_is_transformers_own_loss() -> None:
    model, rows = tiny_llama(), token_rows(4 * WINDOW, rows=3)
    point = SPACE.published()[2]
    fitness = Fitness(model, (Part(rows),), batch_tokens=4 * WINDOW)
    found = fitness.evaluate(point)
    assert found.forward_tokens == fitness.forward_tokens == rows.numel()
    with torch.no_grad():
        expected = extend(tiny_llama(), point)(rows, labels=rows).loss.item()
    assert found.loss == pytest.approx(expected, abs=1e-5)
