"""One pass for tasks that share model, scaling and documents; the best case; the extension's tasks, metrics."""

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate import compare
from ropewalk.evaluate.cache import Cache
from ropewalk.evaluate.compare import (
    PerplexityResult,
    PerplexityTask,
    measure,
    measure_sliding,
    paired_rows,
    position_rows,
)
from ropewalk.evaluate.extension import Extension, with_gradient
from ropewalk.evaluate.models import LoadedModels, model_paths, weights_of
from ropewalk.evaluate.perplexity import DocumentSet, Losses, document_losses, perplexities, sliding_losses
from ropewalk.evaluate.prompt_sets import Draw, PromptSets, needle_draws, passkey_draws
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.summary import metrics, summary
from ropewalk.files import read_json
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, methods
from tiny_models import byte_tokenizer, tiny_base, tiny_llama, tiny_rounding
from tiny_pipeline import byte_store
from tolerances import relative_error

pytestmark = pytest.mark.numeric

SHAPE = RotaryShape(16, 10_000.0, 64)
FIRST = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.3), 64, 256, attention_factor=1.1)
SHORT = RopeScaling((1.0,) * 7 + (1.1,), 64, 64)
SECOND = RopeScaling(tuple(2 * factor for factor in FIRST.factors), 64, 600, attention_factor=1.2)
SWITCH = LengthSwitch(((64, SHORT), (256, FIRST), (600, SECOND)))
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
EXTENSION = Extension(SHAPE, FIRST, SWITCH, CONFIG, methods.compared())


@pytest.fixture
def models(trained: Any) -> dict[str, Any]:
    return dict.fromkeys(("base", "finetuned", "control"), trained)


def tasks_of(extension: Extension, store: TokenStore) -> list[PerplexityTask]:
    return list(extension.perplexity_tasks(extension.document_sets(store)))


def test_tasks_that_share_a_pass_give_what_separate_passes_give(
    trained: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = DocumentSet.of("all", store, length=256, documents=3)
    tasks = [PerplexityTask("m", "pi", "s=4", FIRST, length, short) for length in (64, 256)]
    tasks += [PerplexityTask("m", "ours", "searched", replace(FIRST, target_length=300), 128, short)]
    tasks += [PerplexityTask("m", "none", "plain", SHORT, 64, short)]
    passes = []

    def counted(*arguments: Any, **more: Any) -> dict[int, Losses]:
        passes.append(arguments[3])
        return document_losses(*arguments, **more)

    monkeypatch.setattr(compare, "document_losses", counted)
    rows = [result.row for result in measure({"m": trained}, tasks)]
    assert passes == [[64, 128, 256], [64]]
    for task in tasks:
        (row,) = [row for row in rows if (row["method"], row["length"]) == (task.method, task.length)]
        alone = perplexities(trained, task.scaling, short, [task.length])[task.length]
        assert relative_error(math.log(row["perplexity"]), math.log(alone)) < tiny_rounding(256)
        assert (row["documents"], row["tokens"]) == (3, 3 * (task.length - 1))
        assert "one pass" in row["protocol"]


def losses(*means: float) -> Losses:
    return Losses(means, tuple((mean,) for mean in means))


def test_every_row_has_its_protocol_its_interval_and_its_mark() -> None:
    documents = DocumentSet("all", torch.zeros(4, 16, dtype=torch.long))
    task = PerplexityTask("m", "pi", "s=4", FIRST, 16, documents)
    row = PerplexityResult(task, losses(1.0, 1.1, 1.3, 1.2)).row
    assert row["perplexity"] == pytest.approx(math.exp(1.15))
    assert row["low"] < row["perplexity"] < row["high"]
    assert (row["documents"], row["tokens"], row["nan_documents"]) == (4, 4 * 15, 0)
    nan = PerplexityResult(task, losses(1.0, math.nan, 1.3, 1.2)).row
    assert (nan["perplexity"], nan["low"], nan["high"], nan["nan_documents"]) == (math.inf, "", "", 1)
    sliding = PerplexityResult(replace(task, length=8), losses(1.0, 1.1, 1.3, 1.2), stride=4).row
    assert (sliding["stride"], sliding["tokens"]) == (4, 4 * 15)
    assert sliding["protocol"].startswith("windows of 8 tokens, moved by 4")


def test_methods_are_compared_on_the_same_documents_at_their_best() -> None:
    documents = DocumentSet("all", torch.zeros(8, 16, dtype=torch.long))
    ours = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0, 0.8, 1.2]

    def found(method: str, variant: str, means: list[float]) -> PerplexityResult:
        return PerplexityResult(PerplexityTask("m", method, variant, FIRST, 16, documents), losses(*means))

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
    tasks = [PerplexityTask("m", "ours", "searched", FIRST, length, short) for length in (64, 256)]
    rows = list(position_rows(measure({"m": trained}, tasks)))
    assert [(row["from_position"], row["to_position"]) for row in rows][:2] == [(1, 16), (17, 24)]
    assert {row["length"] for row in rows} == {256}
    weighted = sum(row["loss_nats"] * (row["to_position"] - row["from_position"] + 1) for row in rows) / 255
    alone = perplexities(trained, FIRST, short, [256])[256]
    assert relative_error(weighted, math.log(alone)) < tiny_rounding(256)
    sliding = measure_sliding({"m": trained}, tasks[:1], stride=32)
    assert sliding[0].losses == sliding_losses(trained, FIRST, short, 64, stride=32)


def test_the_pipeline_reads_every_method_at_every_length_on_comparable_documents(store: TokenStore) -> None:
    tasks = tasks_of(EXTENSION, store)
    for length in CONFIG.lengths:
        at = [task for task in tasks if task.length == length and task.model == "finetuned"]
        assert {task.method for task in at} == {*methods.baselines(), "ours"}
        sets = {task.documents.name for task in at}
        assert sets == ({"all", "long"} if length == 256 else {"long" if length > 256 else "all"})
    assert {task.length for task in tasks if task.model == "base"} == {64, 256}
    our_scalings = {r.length: r.scaling for r in tasks if (r.model, r.method) == ("finetuned", "ours")}
    assert our_scalings == {64: SHORT, 256: FIRST, 600: SECOND}
    base_ours = [(r.length, r.variant, r.scaling) for r in tasks if (r.model, r.method) == ("base", "ours")]
    in_window = replace(EXTENSION.plain, target_length=256)
    assert base_ours == [
        (64, "for up to 64", in_window),
        (64, "for up to 256", FIRST),
        (256, "for up to 256", FIRST),
    ]
    assert [(r.length, r.method) for r in tasks if r.model == "control"] == [(64, "none")]
    short, long = EXTENSION.document_sets(store)
    assert long is not None
    assert (short.documents, long.documents) == (8, 2)


def test_without_a_training_the_base_model_is_read_under_our_factors_at_every_length(store: TokenStore) -> None:
    plain = RopeScaling((1.0,) * 8, 64, 64, method="none")
    switch = LengthSwitch(((64, plain), (256, FIRST)))
    extension = replace(EXTENSION, switch=switch, extended="base", config=replace(CONFIG, base_lengths=CONFIG.lengths))
    tasks = [task for task in tasks_of(extension, store) if not task.model.startswith(("control", "baseline"))]
    assert {task.model for task in tasks} == {"base"}
    for length in CONFIG.lengths:
        assert {task.method for task in tasks if task.length == length} == {*methods.baselines(), "ours"}
    ours = [(r.length, r.documents.name, r.variant, r.scaling) for r in tasks if r.method == "ours"]
    assert ours == [
        (64, "all", "for up to 64", plain),
        (64, "all", "for up to 256", FIRST),
        (256, "all", "for up to 256", FIRST),
        (600, "long", "for up to 1024", switch.for_length(600)),
        (600, "long", "for up to 256", FIRST),
        (256, "long", "for up to 256", FIRST),
    ]
    assert switch.for_length(600).factors == pytest.approx(tuple(factor**2 for factor in FIRST.factors))


def test_a_pipeline_without_some_methods_does_not_read_them(store: TokenStore) -> None:
    tasks = tasks_of(replace(EXTENSION, methods=("none", "yarn")), store)
    assert {task.method for task in tasks} == {"none", "yarn"}
    with pytest.raises(ValueError, match=r"rope.methods: unknown \['magic'\]; allowed are none, pi"):
        replace(EXTENSION, methods=("magic",))


def test_models_that_were_not_trained_are_not_read_and_the_seed_is(
    store: TokenStore, tmp_path: Path, models: dict[str, Any]
) -> None:
    seed, sets = tmp_path / "first_gradient.json", EXTENSION.document_sets(store)
    seed.write_text(SHORT.to_json())
    without = {name: model for name, model in models.items() if name != "control"}
    tasks = list(with_gradient(EXTENSION, sets, seed, without))
    assert {task.model for task in tasks} == {"base", "finetuned"}
    assert [(r.model, r.scaling, r.length) for r in tasks if r.method == "gradient"] == [("base", SHORT, 64)]
    assert not [r for r in with_gradient(EXTENSION, sets, tmp_path / "none.json", models) if r.method == "gradient"]


def test_the_pipeline_is_read_from_the_files_of_the_searches(tmp_path: Path) -> None:
    tuned = tmp_path / "checkpoints" / "finetune_second"
    for folder in (tmp_path / "factors", tuned):
        folder.mkdir(parents=True)
    (tmp_path / "factors" / "first.json").write_text(FIRST.to_json())
    (tmp_path / "factors" / "recovered.json").write_text(SWITCH.to_json())
    base = tiny_base(original_length=64, rotary_dim=16)
    untrained = Extension.read(tmp_path, base, CONFIG, methods=methods.compared())
    assert (untrained.extended, untrained.is_trained) == ("base", False)
    (tuned / "config.json").write_text("{}")
    assert Extension.read(tmp_path, base, CONFIG, methods=methods.compared()) == EXTENSION


def test_on_a_checkpoint_with_a_scaling_of_its_own_every_baseline_is_also_put_on_top_of_it(store: TokenStore) -> None:
    start = RopeScaling((1.0, 1.0, 1.1, 1.3, 1.6, 2.0, 2.0, 2.0), 64, 128, attention_factor=1.05)
    config = replace(CONFIG, lengths=[128, 256, 600], base_lengths=[128, 256])
    extension = replace(EXTENSION, start_scaling=start, config=config)
    assert extension.window == 128
    base = [task for task in tasks_of(extension, store) if task.model == "base"]
    assert [r.scaling for r in base if (r.method, r.length) == ("none", 128)] == [start]
    assert {r.variant for r in base if (r.method, r.length) == ("none", 256)} == {
        "plain, replaced",
        "the checkpoint's factors",
    }
    composed = [r.scaling for r in base if (r.method, r.length) == ("pi", 256) and r.variant.endswith("composed")]
    assert [scaling.factors for scaling in composed] == [tuple(2 * factor for factor in start.factors)]
    assert [(r.length, r.scaling) for r in tasks_of(extension, store) if r.model == "control"] == [(128, start)]


def test_trained_baselines_are_read_as_they_were_trained_and_beyond_with_s_of_the_length(
    store: TokenStore, models: dict[str, Any], tmp_path: Path
) -> None:
    sets = EXTENSION.document_sets(store)
    assert not [r for r in with_gradient(EXTENSION, sets, tmp_path, models) if r.model.startswith("baseline")]
    trained = models | {"baseline_yarn": models["base"]}
    baseline_tasks = [r for r in with_gradient(EXTENSION, sets, tmp_path, trained) if r.model.startswith("baseline")]
    assert [(r.model, r.method, r.length, r.variant) for r in baseline_tasks] == [
        ("baseline_yarn", "yarn", 64, "as trained"),
        ("baseline_yarn", "yarn", 256, "as trained"),
        ("baseline_yarn", "yarn", 600, "as trained"),
        ("baseline_yarn", "yarn", 600, "s=9.375"),
    ]
    assert {r.scaling.target_length for r in baseline_tasks} == {256, 600}
    assert [r.documents.name for r in baseline_tasks] == ["all", "all", "long", "long"]


def test_factor_rows_are_ours_by_length_and_the_published_ones() -> None:
    rows = EXTENSION.factor_rows()
    names = ["ours, up to 64", "ours, up to 256", "ours, up to 600", "pi", "ntk", "yarn"]
    assert list(dict.fromkeys(row["factors_of"] for row in rows)) == names
    assert [row["lambda"] for row in rows if row["factors_of"] == "ours, up to 600"] == list(SECOND.factors)
    assert {row["lambda"] for row in rows if row["factors_of"] == "pi"} == {4.0}


def drawn(folder: Path) -> PromptSets:
    return PromptSets(byte_tokenizer(), byte_store(folder / "tokens"))


def test_passkeys_are_tried_on_both_models_as_often_as_asked(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=258)
    extension = replace(EXTENSION, first=replace(FIRST, target_length=400))
    draws = passkey_draws(extension.config, target=400, seed=0)
    rows = extension.recall(draws, {"base": model, "finetuned": model}, drawn(tmp_path), desc="passkeys")
    counts = {(row["model"], row["method"], row["length"]): 0 for row in rows}
    for row in rows:
        counts[row["model"], row["method"], row["length"]] += row["trials"]
    assert counts == {
        ("finetuned", "ours", 300): 4,
        ("base", "none", 300): 4,
        ("base", "ours", 300): 4,
        ("base", "yarn", 300): 4,
        ("finetuned", "ours", 500): 2,
    }


def test_without_a_training_passkeys_are_tried_plain_with_ours_and_with_yarn(tmp_path: Path) -> None:
    extension = replace(EXTENSION, extended="base", first=replace(FIRST, target_length=400))
    draws = list(passkey_draws(replace(CONFIG, passkey_lengths=[60, 300, 500]), target=400, seed=0))
    assert [draw.family for draw in draws] == 3 * ["passkey", "passkey_varied"]
    readers = [(draw.length, *reader) for draw in draws[::2] for reader in extension._recall_readers(draw.length)]
    assert [(length, model, method) for length, model, method, _ in readers] == [
        (60, "base", "ours"),
        (60, "base", "none"),
        (300, "base", "ours"),
        (300, "base", "none"),
        (300, "base", "yarn"),
        (500, "base", "ours"),
    ]
    yarn = readers[4][3].longest
    assert (yarn.method, yarn.target_length) == ("yarn", 300)


def test_metrics_are_the_best_cases_and_accuracies() -> None:
    row = {"model": "base", "method": "pi", "length": 64, "document_set": "all"}
    rows = [{**row, "perplexity": 7.0}, {**row, "perplexity": 5.0}, {**row, "perplexity": 3.0, "document_set": "long"}]
    keys = {"model": "finetuned", "method": "ours", "length": 256}
    passkeys = [
        {**keys, "form": form, "depth": 0.5, "cluster": number, "trials": 10, "correct": correct, "likely": 10}
        for form, correct in (("published", 9), ("varied", 6))
        for number in range(2)
    ]
    values = metrics(*map(ResultTable.from_rows, (rows, passkeys, [])))
    assert values == {
        "perplexity": {"base": {"pi": {"64_all": 5.0, "64_long": 3.0}}},
        "passkey": {
            "finetuned": {
                "ours": {"256": 0.75, "256_likelihood_accuracy": 1.0, "256_published": 0.9, "256_varied": 0.6}
            }
        },
    }
    assert math.isfinite(json.loads(json.dumps(values))["perplexity"]["base"]["pi"]["64_all"])


def test_models_are_loaded_from_their_checkpoints(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    base = tiny_base(path=str(tmp_path / "base"))
    (tmp_path / "finetune_second").mkdir()
    assert model_paths(base, tmp_path) == {"base": base.path}
    tiny_llama().save_pretrained(tmp_path / "finetune_second")
    assert list(model_paths(base, tmp_path)) == ["base", "finetuned"]
    tiny_llama().save_pretrained(tmp_path / "control")
    assert list(model_paths(base, tmp_path)) == ["base", "finetuned", "control"]
    tiny_llama().save_pretrained(tmp_path / "baselines" / "pi")
    (tmp_path / "baselines" / ".yarn.writing").mkdir()
    paths = model_paths(base, tmp_path)
    assert list(paths)[3:] == ["baseline_pi"]
    # All of these are small; of large ones, one is in memory at a time.
    for memory, kept in ((1e9, list(paths)), (1e5, ["baseline_pi"])):
        models = LoadedModels(paths, memory=memory, dtype="float32")
        loaded = [weakref.ref(models[name]) for name in models]
        assert [name for name, model in zip(paths, loaded, strict=True) if model() is not None] == kept
    hashes = weights_of(model_paths(tiny_base(path="owner/name"), tmp_path))
    assert list(hashes) == ["base", "finetuned", "control", "baseline_pi"]
    assert hashes["control"] == hashes["baseline_pi"] != hashes["base"] == "owner/name"


def test_needles_are_the_same_for_every_method_and_measured_once(tmp_path: Path) -> None:
    model, prompts = tiny_llama(vocab_size=258), drawn(tmp_path)
    config = replace(CONFIG, needles=["single"], needle_lengths=[500], needle_trials=2, needle_depths=2)
    extension = replace(EXTENSION, first=replace(FIRST, target_length=600), config=config)
    cache = Cache(tmp_path / "figures", {"base": "one", "finetuned": "two"})
    models = {"base": model, "finetuned": model}
    draws = list(needle_draws(extension.config, seed=0))
    rows = extension.recall(draws, models, prompts, desc="passkeys", cache=cache)
    assert [(row["model"], row["method"], row["depth"]) for row in rows] == [
        (model, method, depth)
        for model, method in (("finetuned", "ours"), ("base", "none"), ("base", "ours"), ("base", "yarn"))
        for depth in (0.0, 1.0)
    ]
    assert {row["protocol"][:15] for row in rows} == {"greedy decoding"}
    kept = [read_json(path)["about"]["prompts"] for path in (tmp_path / "figures").rglob("*.json")]
    assert kept == [prompts.of(Draw("single", 500, 2, 2, 0)).hash] * 4
    assert extension.recall(draws, dict.fromkeys(models), prompts, desc="passkeys", cache=cache) == rows
    values = metrics(*map(ResultTable.from_rows, ([], [], rows)))["needles"]["single"]
    assert set(values["base"]["none"]) == {"500_accuracy", "500_likelihood_accuracy"}


def test_the_summary_marks_a_figure_of_no_number() -> None:
    row = {"model": "base", "method": "pi", "document_set": "all"}
    rows = [{**row, "length": 64, "perplexity": 7.0}, {**row, "length": 128, "perplexity": math.inf}]
    lines = summary(ResultTable.from_rows(rows), ResultTable.from_rows([]), ["Works to 2,048 tokens."], []).splitlines()
    (line,) = [line for line in lines if line.startswith("PI")]
    assert line.split() == ["PI", "7.000", "NaN"]


def test_factors_from_files_are_read_beside_the_methods(tmp_path: Path, store: TokenStore) -> None:
    (tmp_path / "table.csv").write_text(",".join(map(str, FIRST.factors)) + "\n")
    (tmp_path / "mine.json").write_text(FIRST.to_json())
    files = [str(tmp_path / name) for name in ("table.csv", "mine.json")]
    extension = replace(EXTENSION, config=replace(CONFIG, factors=files))
    file_tasks = [task for task in tasks_of(extension, store) if task.method in ("table", "mine")]
    assert [(task.model, task.method, task.length) for task in file_tasks] == [
        ("base", name, length) for length in (64, 256) for name in ("table", "mine")
    ]
    assert {task.scaling.factors for task in file_tasks} == {FIRST.factors}
    (tmp_path / "yarn.json").write_text(FIRST.to_json())
    for wrong in ([*files, files[1]], [str(tmp_path / "yarn.json")]):
        with pytest.raises(ValueError, match=r"evaluate\.factors must be files of different names"):
            tasks_of(replace(EXTENSION, config=replace(CONFIG, factors=wrong)), store)
