"""The extension's three searches on a tiny model: what each starts from, is bounded by and gives."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.config import FitnessConfig, SearchConfig, SearchTargetConfig
from ropewalk.rope import LengthSwitch, RopeScaling
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.history import SearchResult, search_metrics, table
from ropewalk.search.targets import TargetSearch
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from tiny_runs import token_store

CONFIG = SearchConfig(
    name="tiny",
    gradient_steps=2,
    gradient_batch_size=1,
    trials=8,
    initial_population=6,
    population_size=4,
    num_parents=4,
    documents=2,
)
FIRST = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.3), WINDOW, 4 * WINDOW, attention_factor=1.1)


def targets(folder: Path, *lengths: int, **more: Any) -> TargetSearch:
    return TargetSearch(
        tiny_llama,
        token_store(folder / "store", tokens=1200),
        config=replace(CONFIG, **more),
        target=SearchTargetConfig(lengths=list(lengths)),
        original_length=WINDOW,
        seed=0,
        state_folder=folder / "state",
        label="tiny",
    )


def relative_of_best(result: SearchResult) -> tuple[RopeScaling, float]:
    """The searched point of the lowest loss, as the history holds it, and its loss."""
    row = min((row for row in result.rows if row["phase"] != "gradient"), key=lambda row: row["loss"])
    factors = tuple(row[f"lambda_{pair:02d}"] for pair in range(8))
    return RopeScaling(factors, 1, 1, row["n_hat"], row["attention_factor"]), row["loss"]


def test_the_first_search_goes_from_the_window_to_each_length_in_order(tmp_path: Path) -> None:
    results = targets(tmp_path, 2 * WINDOW, 4 * WINDOW).first()
    assert list(results) == [2 * WINDOW, 4 * WINDOW]
    for length, result in results.items():
        assert (result.best.original_length, result.best.target_length) == (WINDOW, length)
        assert max(result.best.factors) <= 1.25 * length / WINDOW
        assert (tmp_path / "state" / str(length) / "study.db").is_file()
    # The longer search reads the shorter one's result, and that stretched, before anything else.
    starts = [row for row in results[4 * WINDOW].rows if row["phase"] == "published"][:2]
    shorter = results[2 * WINDOW].best.factors
    assert [starts[0][f"lambda_{pair:02d}"] for pair in range(8)] == pytest.approx(list(shorter), abs=0.0051)
    assert [starts[1][f"lambda_{pair:02d}"] for pair in range(8)] == pytest.approx(
        [min(factor**2, 5.0) for factor in shorter], abs=0.0051
    )


@pytest.mark.parametrize("step", [0.25, 0.0001])
def test_factors_are_multiples_of_the_step_above_one(tmp_path: Path, step: float) -> None:
    ((_, result),) = targets(tmp_path, 4 * WINDOW, step=step).first().items()
    points = np.array([[row[f"lambda_{pair:02d}"] for pair in range(8)] for row in result.rows])
    assert np.allclose((points - 1) / step, np.round((points - 1) / step), atol=1e-5)
    # Of a fine step, hardly any is a multiple of a coarse one as well.
    assert step == 0.25 or (np.abs(points * 4 - np.round(points * 4)) > 1e-3).mean() > 0.3


def test_the_second_search_is_composed_on_top_of_the_first(tmp_path: Path) -> None:
    results = targets(tmp_path, 8 * WINDOW, 16 * WINDOW).second(FIRST)
    for length, result in results.items():
        relative, loss = relative_of_best(result)
        composed = FIRST.then(replace(relative, original_length=FIRST.target_length, target_length=length))
        assert result.best == composed
        assert result.loss == loss
        assert (result.best.original_length, result.best.target_length) == (WINDOW, length)
        assert all(a >= b for a, b in zip(result.best.factors, FIRST.factors, strict=True))
        assert max(relative.factors) <= 1.25 * length / FIRST.target_length
        assert result.gradient is not None


def test_the_second_search_also_begins_with_what_leads_from_plain_rope_to_the_first_factors(tmp_path: Path) -> None:
    search = targets(tmp_path, 16 * WINDOW, trials=0, attention_factor=[0.9, 1.6])
    ((_, result),) = search.second(FIRST).items()
    # 16 times the window is four times the first target, so that every factor is squared: FIRST once more on top of it.
    published = [row for row in result.rows if row["phase"] == "published"]
    points = np.array([[row[f"lambda_{pair:02d}"] for pair in range(8)] for row in published])
    (index,) = np.flatnonzero(np.isclose(points, FIRST.factors, atol=1e-4).all(1))
    assert published[index]["attention_factor"] == pytest.approx(FIRST.attention_factor**2, abs=1e-4)


def test_the_first_search_on_a_checkpoints_own_scaling_is_composed_with_it(tmp_path: Path) -> None:
    start = FIRST
    ((length, result),) = targets(tmp_path, 8 * WINDOW).first(start).items()
    relative, loss = relative_of_best(result)
    assert result.best == start.then(replace(relative, original_length=start.target_length, target_length=length))
    assert result.loss == loss
    assert (result.best.original_length, result.best.target_length) == (WINDOW, 8 * WINDOW)
    # From its window, so at most twice as far, not eight times.
    assert max(relative.factors) <= 1.25 * 2
    recovered = targets(tmp_path / "recover", WINDOW).recover(result.best, [start])[WINDOW]
    published = [row for row in recovered.rows if row["phase"] == "published"]
    points = [[row[f"lambda_{pair:02d}"] for pair in range(8)] for row in published]
    assert points[:2] == [[1.0] * 8, list(start.factors)]


def test_recovery_never_goes_above_the_extended_models_largest_factor(tmp_path: Path) -> None:
    results = targets(tmp_path, WINDOW // 2, WINDOW, 2 * WINDOW, trials=12).recover(FIRST)
    for length, result in results.items():
        points = [[row[f"lambda_{pair:02d}"] for pair in range(8)] for row in result.rows]
        assert np.max(points) <= max(FIRST.factors) + 1e-9
        assert (result.best.original_length, result.best.target_length) == (WINDOW, max(length, WINDOW))
        assert {row["length"] for row in result.rows} == {length}


def test_recovery_begins_with_plain_rope_and_the_extended_factors_each_read_once(tmp_path: Path) -> None:
    result = targets(tmp_path, WINDOW).recover(FIRST)[WINDOW]
    published = [row for row in result.rows if row["phase"] == "published"]
    assert [[row[f"lambda_{pair:02d}"] for pair in range(8)] for row in published] == [[1.0] * 8, list(FIRST.factors)]
    assert result.loss <= min(row["loss"] for row in published)


def test_trials_and_steps_can_be_given_for_each_length(tmp_path: Path) -> None:
    search = targets(tmp_path, 2 * WINDOW, 4 * WINDOW)
    per_length = replace(search.target, trials=[0, 7], gradient_steps=[3, 0], documents=1)
    results = replace(search, target=per_length).first()
    metrics = search_metrics(results)
    assert [(at["trials"], at["gradient_steps"]) for at in metrics.values()] == [(0, 3), (7, 0)]
    assert "gradient_search_perplexity" not in metrics[f"at_{4 * WINDOW}"]
    assert len(table(results)) == sum(len(result.rows) for result in results.values())
    for length, result in results.items():
        assert metrics[f"at_{length}"]["search_perplexity"] == math.exp(result.loss)
        assert metrics[f"at_{length}"]["forward_tokens"] == result.forward_tokens


def test_what_is_judged_by_answers_is_compared_by_perplexity(tmp_path: Path) -> None:
    plain = targets(tmp_path / "plain", 4 * WINDOW, trials=0).first()[4 * WINDOW]
    assert plain.perplexity is None
    mixed = FitnessConfig(lengths=[1.0, 0.5], weights=[1.0, 1.0])
    results = targets(tmp_path / "mix", 4 * WINDOW, fitness=mixed).first()
    result, metrics = results[4 * WINDOW], search_metrics(results)[f"at_{4 * WINDOW}"]
    rows = torch.from_numpy(token_store(tmp_path / "mix" / "store").first_tokens(4 * WINDOW, documents=2))
    perplexity_fitness = Fitness(tiny_llama(), (Part(rows),))
    assert metrics["search_loss"] == result.loss
    assert metrics["search_perplexity"] == math.exp(perplexity_fitness(result.best)) != math.exp(result.loss)
    assert result.gradient is not None
    assert metrics["gradient_search_perplexity"] == math.exp(perplexity_fitness(result.gradient))


def test_query_scales_are_learned_for_the_shortest_length_and_shared_by_all(tmp_path: Path) -> None:
    model = tiny_llama()
    search = targets(tmp_path, 2 * WINDOW, 4 * WINDOW, query_scales="head", gradient_learning_rate=0.4)
    results = search.first()
    scales = results[2 * WINDOW].best.query_scales
    assert scales is not None
    assert (len(scales), len(scales[0])) == (model.config.num_hidden_layers, model.config.num_attention_heads)
    assert any(scale != 1 for row in scales for scale in row)
    assert results[4 * WINDOW].best.query_scales == scales
    LengthSwitch(tuple((length, result.best) for length, result in results.items()))
    first = results[4 * WINDOW].best
    more = targets(tmp_path / "more", 8 * WINDOW, query_scales="head")
    assert more.second(first)[8 * WINDOW].best.query_scales == scales
    again = targets(tmp_path / "again", WINDOW, query_scales="head")
    assert again.recover(first)[WINDOW].best.query_scales == scales


def test_steps_at_twice_the_target_are_paid_for_and_left_out_where_documents_are_too_short(tmp_path: Path) -> None:
    tokens = []
    for length, every in ((4 * WINDOW, 2), (4 * WINDOW, None), (16 * WINDOW, 2)):
        folder = tmp_path / f"{length} {every}"
        search = targets(folder, length, double_length_every=every, gradient_steps=4, trials=0)
        steps = [row["tokens"] for row in search.first()[length].rows if row["phase"] in ("published", "gradient")][-5:]
        tokens.append([(b - a) // (3 * length) for a, b in pairwise(steps)])
    assert tokens == [[1, 2, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_needles_do_not_count_for_a_model_that_does_not_repeat_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint = FitnessConfig("joint", needles=2, needle_weight=0.2, copied_weight=0.5)
    search = replace(
        targets(tmp_path, 8 * WINDOW, fitness=joint, trials=0),
        load=lambda: tiny_llama(vocab_size=258),
        load_tokenizer=byte_tokenizer,
        original_length=4 * WINDOW,
    )
    result = search.first()[8 * WINDOW]
    assert (
        "needles do not count, because the model does not repeat facts within its window (" in capsys.readouterr().err
    )
    assert "copied" in result.record["protocol"]
    assert "answers" not in result.record["protocol"]
    assert result.perplexity is not None


def test_seconds_and_failures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overflowing = replace(FIRST, attention_factor=1e30)
    (tmp_path / "overflowing.json").write_text(overflowing.to_json())
    starts = [str(tmp_path / "overflowing.json")]
    results = targets(tmp_path, 4 * WINDOW, attention_factor=[1.0, 1e30], starts=starts).first()
    failed = [row for row in table(results) if row["state"] == "FAIL"]
    assert failed
    metrics = search_metrics(results)[f"at_{4 * WINDOW}"]
    assert metrics["failed"] == len(failed)
    seconds = [row["seconds"] for row in table(results) if row["phase"] == "evolution"]
    assert 0 < sum(seconds) <= metrics["seconds"] + 0.01
    assert f"tiny for 256 tokens: {len(failed)} of {len(table(results))} candidates failed" in capsys.readouterr().err


def test_factors_from_files_are_read_first_and_begun_from(tmp_path: Path) -> None:
    published, other = tmp_path / "published.csv", tmp_path / "other.json"
    published.write_text("1,1,1.2,1.5,2,3,4,4.3\n1,1,1.2,1.5,2,3,4,4.5\n")
    other.write_text(replace(FIRST, target_length=2 * WINDOW, factors=(1.0,) * 7 + (2.0,)).to_json())
    searches = targets(tmp_path, 2 * WINDOW, 4 * WINDOW, starts=[str(published), str(other)])
    with pytest.warns(UserWarning, match="different factors per layer"):
        results = searches.first()
    for length, expected in ((2 * WINDOW, 2.0), (4 * WINDOW, 4.4)):
        first_points = [row for row in results[length].rows if row["phase"] == "published"]
        assert first_points[1]["lambda_07"] == pytest.approx(expected)
    published.write_text("1,1,1.2,1.5,2,3,4,4\n")
    with pytest.raises(ValueError, match="is of another starts"):
        searches.first()
    published.write_text("1,2,3\n")
    with pytest.raises(ValueError, match=r"published\.csv: found 3 rescale factors, .*the model has 16"):
        searches.first()
    published.unlink()
    with pytest.raises(FileNotFoundError, match=r"published\.csv is not there"):
        searches.first()


def test_a_model_that_does_not_fit_into_memory_gives_one_line(tmp_path: Path) -> None:
    def load() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    with pytest.raises(MemoryError, match=r"^out of memory; lower search\.workers, found 1, or take model\.dtype"):
        replace(targets(tmp_path, 4 * WINDOW), load=load).first()


def test_too_few_long_documents_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 documents of at least 2047 tokens"):
        targets(tmp_path, 2048).first()
