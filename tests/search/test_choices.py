"""Every choice under conf/search, as it is, on a tiny model with a few trials."""

import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ropewalk.composition import checked, register, with_demo
from ropewalk.config import SearchTargetConfig
from ropewalk.models.factors import SearchedFactors
from ropewalk.rope import RopeScaling, methods
from ropewalk.search.history import provenance, search_metrics, table
from ropewalk.search.targets import TargetSearch
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from tiny_runs import token_store
from workspace import ROOT

CHOICES = sorted(path.stem for path in (ROOT / "conf" / "search").glob("*.yaml"))
FITNESSES = sorted(path.stem for path in (ROOT / "conf" / "search" / "fitness").glob("*.yaml"))


def search(folder: Path, *overrides: str) -> TargetSearch:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(compose("config", with_demo([f"output={folder}", *overrides]))).search
    config.trials, config.initial_population, config.population_size, config.num_parents = 7, 4, 2, 2
    config.gradient_steps, config.documents = min(config.gradient_steps, 2), 2
    config.fitness.needles = min(config.fitness.needles, 1)
    config.race.blocks *= 2
    return TargetSearch(
        lambda: tiny_llama(vocab_size=258),
        token_store(folder / "store", tokens=700),
        config=config,
        target=SearchTargetConfig(lengths=[4 * WINDOW]),
        original_length=WINDOW,
        seed=0,
        state_folder=folder / "state",
        load_tokenizer=byte_tokenizer,
        label="tiny",
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_gives_factors_with_their_provenance(tmp_path: Path, choice: str) -> None:
    made = search(tmp_path, f"search={choice}")
    result = made.first()[4 * WINDOW]
    rows = [row for row in result.rows if row["phase"] == "evolution"]
    assert len(rows) == 7
    assert math.isfinite(result.loss)
    assert result.loss == min(row["loss"] for row in result.rows if row["phase"] != "gradient" and row["loss"])
    steps = sum(row["phase"] == "gradient" for row in result.rows)
    assert steps == made.config.gradient_steps
    if choice == "paper":
        su = methods.longrope(
            rotary_dim=16, base=10_000.0, original_length=WINDOW, target_length=4 * WINDOW, factors=(1.0,) * 8
        )
        assert {round(row["attention_factor"], 6) for row in rows} == {round(su.attention_factor, 6)}
    if choice == "longrope2":
        assert all(4.0 <= row["lambda_07"] <= 8.0 for row in rows)
    text = SearchedFactors(result.best, provenance(result, search=choice, commit="0" * 40)).to_json()
    assert RopeScaling.from_json(text) == result.best
    origin = SearchedFactors.from_json(text).provenance
    assert origin is not None
    assert (origin["method"], origin["seed"], origin["trials"], origin["gradient_steps"]) == (choice, 0, 7, steps)
    assert origin["forward_tokens"] == result.forward_tokens
    assert origin["model_hash"] == made.model_hash
    assert {"data_hash", "protocol", "commit"} <= origin.keys()
    assert (origin["documents"], origin["evaluation_tokens"]) == (["0", "1"], 2 * 256)
    assert len(table({4 * WINDOW: result})) == len(result.rows)
    assert search_metrics({4 * WINDOW: result})[f"at_{4 * WINDOW}"]["trials"] == 7


@pytest.mark.parametrize("fitness", FITNESSES)
def test_a_fitness_names_what_it_read(tmp_path: Path, fitness: str) -> None:
    result = search(tmp_path, "search=random", f"search/fitness={fitness}").first()[4 * WINDOW]
    expected = {
        "perplexity": "mean loss over all tokens, one pass over the first 256 tokens of 2 documents",
        "mix": "mean loss over all tokens, one pass over the first 256, 128, 64 tokens of 2 documents",
        "joint": "mean loss over all tokens (1), the answers to 1 questions a document (0.1), tokens copied from "
        "beyond the window (0.25), one pass over the first 256 tokens of 2 documents",
        "needles": "mean loss over the answers to 1 questions a document, one pass over the first 256 tokens of "
        "2 documents",
    }
    assert result.record["protocol"] == expected[fitness]
    per_read = 2 * (256 + 128 + 64) if fitness == "mix" else 512
    assert result.forward_tokens == 7 * per_read
