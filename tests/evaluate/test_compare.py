"""One pass for readings that share model, scaling and documents; the best case; the road's readings and metrics."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate import compare
from ropewalk.evaluate.baselines import METHODS
from ropewalk.evaluate.cache import Cache
from ropewalk.evaluate.compare import (
    Measured,
    Reading,
    best_case,
    measure,
    measured,
    measured_sliding,
    paired_rows,
    position_rows,
)
from ropewalk.evaluate.drawing import Draw, DrawnPrompts
from ropewalk.evaluate.perplexity import DocumentSet, Losses, document_losses, perplexities, sliding_losses
from ropewalk.evaluate.rivals import weights_of
from ropewalk.evaluate.road import Road, load_models, metrics, model_paths, with_seed
from ropewalk.evaluate.summary import summary
from ropewalk.files import read_json
from ropewalk.rope import RopeScaling, RotaryShape, switch_to_json
from tiny_models import byte_tokenizer, tiny_llama
from tiny_roads import byte_store

SHAPE = RotaryShape(16, 10_000.0, 64)
FIRST = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.3), 64, 256, attention_factor=1.1)
SHORT = RopeScaling((1.0,) * 7 + (1.1,), 64, 64)
SECOND = RopeScaling(tuple(2 * factor for factor in FIRST.factors), 64, 600, attention_factor=1.2)
SWITCH = ((64, SHORT), (256, FIRST), (600, SECOND))
CONFIG = EvaluateConfig(
    name="tiny",
    lengths=[64, 256, 600],
    base_lengths=[64, 256],
    long_documents=2,
    passkey_lengths=[300, 500],
    passkey_trials=4,
    passkey_long_trials=2,
    passkey_depths=2,
)
ROAD = Road(SHAPE, FIRST, SWITCH, CONFIG, Road.ALL)


@pytest.fixture
def models(trained: Any) -> dict[str, Any]:
    return dict.fromkeys(("base", "finetuned", "control"), trained)


def test_readings_that_share_a_pass_give_what_separate_passes_give(
    trained: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = DocumentSet.of("all", store, length=256, documents=3)
    readings = [Reading("m", "pi", "s=4", FIRST, length, short) for length in (64, 256)]
    readings += [Reading("m", "ours", "searched", replace(FIRST, target_length=300), 128, short)]
    readings += [Reading("m", "none", "plain", SHORT, 64, short)]
    passes = []

    def counted(*arguments: Any, **more: Any) -> dict[int, Losses]:
        passes.append(arguments[3])
        return document_losses(*arguments, **more)

    monkeypatch.setattr(compare, "document_losses", counted)
    rows = measure({"m": trained}, readings)
    assert passes == [[64, 128, 256], [64]]
    for reading in readings:
        (row,) = [row for row in rows if (row["method"], row["length"]) == (reading.method, reading.length)]
        alone = perplexities(trained, reading.scaling, short, [reading.length])[reading.length]
        assert row["perplexity"] == pytest.approx(alone, rel=1e-5)
        assert (row["documents"], row["tokens"]) == (3, 3 * (reading.length - 1))
        assert "one pass" in row["protocol"]


def losses(*means: float) -> Losses:
    return Losses(means, tuple((mean,) for mean in means))


def test_every_row_has_its_protocol_its_interval_and_its_mark() -> None:
    documents = DocumentSet("all", torch.zeros(4, 16, dtype=torch.long))
    reading = Reading("m", "pi", "s=4", FIRST, 16, documents)
    row = Measured(reading, losses(1.0, 1.1, 1.3, 1.2)).row
    assert row["perplexity"] == pytest.approx(math.exp(1.15))
    assert row["low"] < row["perplexity"] < row["high"]
    assert (row["documents"], row["tokens"], row["nan_documents"]) == (4, 4 * 15, 0)
    nan = Measured(reading, losses(1.0, math.nan, 1.3, 1.2)).row
    assert (nan["perplexity"], nan["low"], nan["high"], nan["nan_documents"]) == (math.inf, "", "", 1)
    sliding = Measured(replace(reading, length=8), losses(1.0, 1.1, 1.3, 1.2), stride=4).row
    assert (sliding["stride"], sliding["tokens"]) == (4, 4 * 15)
    assert sliding["protocol"].startswith("windows of 8 tokens, moved by 4")


def test_methods_are_compared_on_the_same_documents_at_their_best() -> None:
    documents = DocumentSet("all", torch.zeros(8, 16, dtype=torch.long))
    ours = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0, 0.8, 1.2]

    def found(method: str, variant: str, means: list[float]) -> Measured:
        return Measured(Reading("m", method, variant, FIRST, 16, documents), losses(*means))

    rows = list(
        paired_rows(
            [
                found("ours", "searched", ours),
                found("pi", "s=2", [mean + 0.5 for mean in ours]),
                found("pi", "s=4", [mean + 0.1 + 0.001 * place for place, mean in enumerate(ours)]),
                found("yarn", "s=4", [math.nan, *ours[1:]]),
            ]
        )
    )
    assert [(row["against"], row["against_variant"]) for row in rows] == [("pi", "s=4"), ("yarn", "s=4")]
    assert rows[0]["low"] < rows[0]["perplexity_ratio"] < rows[0]["high"] < 1
    # All of 2^8 exchanges of signs but the two extreme ones are less extreme.
    assert rows[0]["p_value"] == pytest.approx(2 / 2**8)
    assert rows[1]["p_value"] == ""


def test_loss_by_position_and_sliding_windows_come_with_every_scaling(trained: Any, store: TokenStore) -> None:
    short = DocumentSet.of("all", store, length=256, documents=3)
    readings = [Reading("m", "ours", "searched", FIRST, length, short) for length in (64, 256)]
    rows = list(position_rows(measured({"m": trained}, readings)))
    assert [(row["from_position"], row["to_position"]) for row in rows][:2] == [(1, 16), (17, 24)]
    assert {row["length"] for row in rows} == {256}
    weighted = sum(row["loss_nats"] * (row["to_position"] - row["from_position"] + 1) for row in rows) / 255
    assert math.exp(weighted) == pytest.approx(perplexities(trained, FIRST, short, [256])[256], rel=1e-6)
    sliding = measured_sliding({"m": trained}, readings[:1], stride=32)
    assert sliding[0].losses == sliding_losses(trained, FIRST, short, 64, stride=32)


def test_the_best_case_is_the_lowest_of_a_methods_variants() -> None:
    row = {"model": "base", "method": "pi", "length": 64, "document_set": "all"}
    rows = [
        {**row, "perplexity": 7.0},
        {**row, "perplexity": 5.0},
        {**row, "perplexity": 3.0, "document_set": "long"},
        {**row, "perplexity": 1.0, "method": "ntk"},
        {**row, "perplexity": 1.0, "model": "control"},
        {**row, "perplexity": 1.0, "length": 128},
    ]
    assert best_case(rows, model="base", method="pi", length=64, document_set="all") == 5.0
    assert best_case(rows, model="base", method="pi", length=64) == 3.0
    with pytest.raises(KeyError, match="no perplexity of yarn on base at 64"):
        best_case(rows, model="base", method="yarn", length=64)


def test_the_road_reads_every_method_at_every_length_on_comparable_documents(store: TokenStore) -> None:
    readings = list(ROAD.readings(store))
    for length in CONFIG.lengths:
        at = [reading for reading in readings if reading.length == length and reading.model == "finetuned"]
        assert {reading.method for reading in at} == {*METHODS, "ours"}
        sets = {reading.documents.name for reading in at}
        assert sets == ({"all", "long"} if length == 256 else {"long" if length > 256 else "all"})
    assert {reading.length for reading in readings if reading.model == "base"} == {64, 256}
    own = {r.length: r.scaling for r in readings if (r.model, r.method) == ("finetuned", "ours")}
    assert own == {64: SHORT, 256: FIRST, 600: SECOND}
    (base_ours,) = {r.scaling for r in readings if (r.model, r.method) == ("base", "ours")}
    assert base_ours == FIRST
    assert [(r.length, r.method) for r in readings if r.model == "control"] == [(64, "none")]
    short, long = ROAD.document_sets(store)
    assert long is not None
    assert (short.documents, long.documents) == (8, 2)


def test_a_road_without_some_methods_does_not_read_them(store: TokenStore) -> None:
    readings = list(replace(ROAD, methods=("none", "yarn")).readings(store))
    assert {reading.method for reading in readings} == {"none", "yarn"}
    with pytest.raises(ValueError, match=r"rope.methods: unknown \['magic'\]; allowed are none, pi"):
        replace(ROAD, methods=("magic",))


def test_models_that_were_not_trained_are_not_read_and_the_seed_is(
    store: TokenStore, tmp_path: Path, models: dict[str, Any]
) -> None:
    seed = tmp_path / "first_seed.json"
    seed.write_text(SHORT.to_json())
    without = {name: model for name, model in models.items() if name != "control"}
    readings = list(with_seed(ROAD, store, seed, without))
    assert {reading.model for reading in readings} == {"base", "finetuned"}
    assert [(r.model, r.scaling, r.length) for r in readings if r.method == "seed"] == [("base", SHORT, 64)]
    assert not [r for r in with_seed(ROAD, store, tmp_path / "none.json", models) if r.method == "seed"]


def test_the_road_is_read_from_the_files_of_the_searches(tmp_path: Path) -> None:
    (tmp_path / "first.json").write_text(FIRST.to_json())
    (tmp_path / "recovered.json").write_text(switch_to_json(SWITCH))
    base = {"rotary_dim": 16, "base": 10_000.0, "original_length": 64}
    assert Road.read(tmp_path, base, CONFIG, methods=Road.ALL) == ROAD


def test_on_a_checkpoint_with_a_scaling_of_its_own_every_baseline_is_also_put_on_top_of_it(store: TokenStore) -> None:
    own = RopeScaling((1.0, 1.0, 1.1, 1.3, 1.6, 2.0, 2.0, 2.0), 64, 128, attention_factor=1.05)
    config = replace(CONFIG, lengths=[128, 256, 600], base_lengths=[128, 256])
    road = replace(ROAD, own=own, config=config)
    assert road.window == 128
    base = [reading for reading in road.readings(store) if reading.model == "base"]
    assert [r.scaling for r in base if (r.method, r.length) == ("none", 128)] == [own]
    assert {r.variant for r in base if (r.method, r.length) == ("none", 256)} == {
        "plain, replaced",
        "the checkpoint's factors",
    }
    composed = [r.scaling for r in base if (r.method, r.length) == ("pi", 256) and r.variant.endswith("composed")]
    assert [scaling.factors for scaling in composed] == [tuple(2 * factor for factor in own.factors)]
    assert [(r.length, r.scaling) for r in road.readings(store) if r.model == "control"] == [(128, own)]


def test_rivals_are_read_as_they_were_trained_and_beyond_with_s_of_the_length(
    store: TokenStore, models: dict[str, Any], tmp_path: Path
) -> None:
    assert not [r for r in with_seed(ROAD, store, tmp_path, models) if r.model.startswith("rival")]
    trained = models | {"rival_yarn": models["base"]}
    own = [r for r in with_seed(ROAD, store, tmp_path, trained) if r.model.startswith("rival")]
    assert [(r.model, r.method, r.length, r.variant) for r in own] == [
        ("rival_yarn", "yarn", 64, "as trained"),
        ("rival_yarn", "yarn", 256, "as trained"),
        ("rival_yarn", "yarn", 600, "as trained"),
        ("rival_yarn", "yarn", 600, "s=9.375"),
    ]
    assert {r.scaling.target_length for r in own} == {256, 600}
    assert [r.documents.name for r in own] == ["all", "all", "long", "long"]


def test_factor_rows_are_ours_by_length_and_the_published_ones() -> None:
    rows = ROAD.factor_rows()
    names = ["ours, up to 64", "ours, up to 256", "ours, up to 600", "pi", "ntk", "yarn"]
    assert list(dict.fromkeys(row["factors_of"] for row in rows)) == names
    assert [row["lambda"] for row in rows if row["factors_of"] == "ours, up to 600"] == list(SECOND.factors)
    assert {row["lambda"] for row in rows if row["factors_of"] == "pi"} == {4.0}


def drawn(folder: Path) -> DrawnPrompts:
    return DrawnPrompts(byte_tokenizer(), byte_store(folder / "tokens"))


def test_passkeys_are_tried_on_both_models_as_often_as_asked(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=258)
    road = replace(ROAD, first=replace(FIRST, target_length=400))
    rows = road.passkeys({"base": model, "finetuned": model}, drawn(tmp_path), seed=0)
    found = {(row["model"], row["method"], row["length"]): 0 for row in rows}
    for row in rows:
        found[row["model"], row["method"], row["length"]] += row["trials"]
    assert found == {
        ("finetuned", "ours", 300): 4,
        ("base", "none", 300): 4,
        ("base", "ours", 300): 4,
        ("finetuned", "ours", 500): 2,
    }


def test_metrics_are_the_best_cases_and_accuracies() -> None:
    row = {"model": "base", "method": "pi", "length": 64, "document_set": "all"}
    rows = [{**row, "perplexity": 7.0}, {**row, "perplexity": 5.0}, {**row, "perplexity": 3.0, "document_set": "long"}]
    keys = {"model": "finetuned", "method": "ours", "length": 256}
    passkeys = [{**keys, "depth": 0.0, "trials": 10, "correct": 9}, {**keys, "depth": 1.0, "trials": 10, "correct": 6}]
    found = metrics(rows, passkeys)
    assert found == {
        "perplexity": {"base": {"pi": {"64_all": 5.0, "64_long": 3.0}}},
        "passkey": {"finetuned": {"ours": {"256": 0.75}}},
    }
    assert math.isfinite(json.loads(json.dumps(found))["perplexity"]["base"]["pi"]["64_all"])


def test_models_are_loaded_from_their_checkpoints(tmp_path: Path) -> None:
    for name in ("base", "finetune_second"):
        tiny_llama().save_pretrained(tmp_path / name)
    base = {"path": str(tmp_path / "base")}
    assert list(load_models(base, tmp_path, dtype="float32")) == ["base", "finetuned"]
    tiny_llama().save_pretrained(tmp_path / "control")
    assert list(load_models(base, tmp_path, dtype="float32")) == ["base", "finetuned", "control"]
    tiny_llama().save_pretrained(tmp_path / "rivals" / "pi")
    (tmp_path / "rivals" / ".yarn.writing").mkdir()
    assert list(load_models(base, tmp_path, dtype="float32"))[3:] == ["rival_pi"]
    hashes = weights_of(model_paths({"path": "owner/name"}, tmp_path))
    assert list(hashes) == ["base", "finetuned", "control", "rival_pi"]
    assert hashes["control"] == hashes["rival_pi"] != hashes["base"] == "owner/name"


def test_needles_are_the_same_for_every_method_and_measured_once(tmp_path: Path) -> None:
    model, prompts = tiny_llama(vocab_size=258), drawn(tmp_path)
    config = replace(CONFIG, needles=["single"], needle_lengths=[500], needle_trials=2, needle_depths=2)
    road = replace(ROAD, first=replace(FIRST, target_length=600), config=config)
    cache = Cache(tmp_path / "figures", {"base": "one", "finetuned": "two"})
    models = {"base": model, "finetuned": model}
    rows = road.needles(models, prompts, seed=0, cache=cache)
    assert [(row["model"], row["method"], row["depth"]) for row in rows] == [
        (model, method, depth)
        for model, method in (("finetuned", "ours"), ("base", "none"), ("base", "ours"))
        for depth in (0.0, 1.0)
    ]
    assert {row["protocol"][:15] for row in rows} == {"greedy decoding"}
    kept = [read_json(path)["about"]["prompts"] for path in (tmp_path / "figures").rglob("*.json")]
    assert kept == [prompts.of(Draw("single", 500, 2, 2, 0)).hash] * 3
    assert road.needles(dict.fromkeys(models), prompts, seed=0, cache=cache) == rows
    found = metrics([], [], rows)["needles"]["single"]
    assert set(found["base"]["none"]) == {"500_accuracy", "500_likelihood_accuracy"}


def test_the_summary_marks_a_figure_of_no_number() -> None:
    row = {"model": "base", "method": "pi", "document_set": "all"}
    rows = [{**row, "length": 64, "perplexity": 7.0}, {**row, "length": 128, "perplexity": math.inf}]
    line, _ = [line for line in summary(rows, [], []).splitlines() if line.startswith("PI")]  # one for each model
    assert line.split() == ["PI", "7.000", "NaN"]


def test_factors_from_files_are_read_beside_the_methods(tmp_path: Path, store: TokenStore) -> None:
    (tmp_path / "table.csv").write_text(",".join(map(str, FIRST.factors)) + "\n")
    (tmp_path / "mine.json").write_text(FIRST.to_json())
    files = [str(tmp_path / name) for name in ("table.csv", "mine.json")]
    road = replace(ROAD, config=replace(CONFIG, factors=files))
    own = [reading for reading in road.readings(store) if reading.method in ("table", "mine")]
    assert [(one.model, one.method, one.length) for one in own] == [
        ("base", name, length) for length in (64, 256) for name in ("table", "mine")
    ]
    assert {one.scaling.factors for one in own} == {FIRST.factors}
    (tmp_path / "yarn.json").write_text(FIRST.to_json())
    for wrong in ([*files, files[1]], [str(tmp_path / "yarn.json")]):
        with pytest.raises(ValueError, match=r"evaluate\.factors must be files of different names"):
            list(replace(ROAD, config=replace(CONFIG, factors=wrong)).readings(store))
