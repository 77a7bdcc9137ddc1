"""What follows from a model where nothing but the model and its text is given."""

import json
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from models.published_configs import CHECKPOINTS
from ropewalk.composition import composed, schema, section
from ropewalk.config import Config
from ropewalk.defaults.facts import read_facts
from ropewalk.defaults.follow import RULES, followed_text
from ropewalk.defaults.training import unusual
from ropewalk.evaluate.uncertainty import MIN_DOCUMENTS
from ropewalk.models.precision import is_bfloat16_fast
from tiny_models import tiny_llama
from workspace import ROOT

WAYS = ("untrained", "trained", "long")
OUT = ("output=out", "work=work")


def value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with nothing but a published config.json."""
    folders = {}
    for name in ("Llama-3.1-8B", "Qwen2.5-7B", "Mistral-7B-v0.1", "SmolLM2-135M"):
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "config.json").write_text(json.dumps(CHECKPOINTS[name].config))
    return folders


@pytest.mark.parametrize("key", RULES)
def test_a_key_that_follows_is_in_the_schema_without_a_value(key: str) -> None:
    assert OmegaConf.is_missing(OmegaConf.select(schema(), key.rpartition(".")[0]), key.rpartition(".")[2])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-7B", "Mistral-7B-v0.1", "SmolLM2-135M"])
@pytest.mark.parametrize("plan", ["h100", "cpu"])
def test_a_published_model_needs_no_other_key(published: dict[str, Path], name: str, way: str, plan: str) -> None:
    config = composed([f"model.path={published[name]}", f"extension={way}", f"plan={plan}", *OUT])
    window = CHECKPOINTS[name].window
    target = config.extension.target
    assert config.extension.factor in (2.0, 4.0, 8.0)
    assert target == config.extension.factor * window
    assert config.extension.second_target == (8 * target if way == "long" else target)
    assert config.evaluate.lengths[0] == window
    assert {window, target} <= set(config.evaluate.base_lengths)
    assert config.evaluate.lengths[-1] in {2 * target, target} if way != "long" else {8 * target}
    assert config.corpus.long_tokens == config.evaluate.lengths[-1]
    trained = 0 if way == "untrained" else config.finetune.second.length - 2
    assert config.corpus.train_tokens == trained < config.corpus.long_tokens
    assert config.evaluate.documents is None or config.evaluate.documents >= MIN_DOCUMENTS
    assert config.model.dtype == ("bfloat16" if plan == "h100" or is_bfloat16_fast() else "float32")
    assert config.finetune.weights_dtype(config.model.dtype) == "float32"
    assert not list(unusual(config, read_facts(config.model)))


def test_ruler_is_asked_where_a_gpu_reads_the_target_quickly(published: dict[str, Path], tmp_path: Path) -> None:
    small = [f"model.path={published['SmolLM2-135M']}", "extension=untrained", *OUT]
    assert {"multi_query", "common_words", "frequent_words"} <= set(composed([*small, "plan=h100"]).evaluate.needles)
    assert composed([*small, "plan=cpu"]).evaluate.needles == []
    assert composed([*small, "plan=h100", "extension.target=2097152"]).evaluate.needles == []
    assert composed([*small, "plan=h100", "evaluate.needles=[single]"]).evaluate.needles == ["single"]
    tiny_llama().save_pretrained(tmp_path)
    assert composed([f"model.path={tmp_path}", "extension=untrained", "plan=h100", *OUT]).evaluate.needles == []


def test_windows_are_mixed_where_training_can_have_them(published: dict[str, Path], tmp_path: Path) -> None:
    llama = (f"model.path={published['Llama-3.1-8B']}", "extension=trained", "plan=h100", *OUT)

    def short_share(*overrides: str) -> float:
        return composed([*llama, *overrides]).finetune.short_share

    assert short_share() == 0.25
    assert short_share("finetune.short_share=0.5") == 0.5
    assert short_share("search.query_scales=head") == 0
    assert short_share("parallel=context", "parallel.devices=8", "parallel.context=8") == 0
    assert short_share("parallel.attention=ring") == 0
    assert short_share("finetune.first.length=200000") == 0
    config = json.loads((published["Llama-3.1-8B"] / "config.json").read_text()) | {"model_type": "gpt_oss"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GptOssForCausalLM"]}))
    assert short_share(f"model.path={tmp_path}") == 0


def test_a_large_model_is_trained_as_the_papers_train_it(published: dict[str, Path]) -> None:
    config = composed([f"model.path={published['Mistral-7B-v0.1']}", "extension.target=262144", "plan=h100", *OUT])
    first, second = config.finetune.first, config.finetune.second
    assert (first.length, second.length) == (131_072, 262_144)
    assert (first.steps, second.steps) == (400, 600)
    assert first.learning_rate == second.learning_rate == 2e-5
    assert first.batch_size * first.length == second.batch_size * second.length == 4_194_304
    assert (config.finetune.optimizer, config.finetune.control) == ("adamw_fused", False)


@given(
    window=st.sampled_from([64, 256, 512, 4096]),
    factor=st.sampled_from([1.5, 2.0, 3.0, 4.0, 8.0, 32.0]),
    way=st.sampled_from(WAYS),
    devices=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_given_the_rest_agrees_with_it(
    tmp_path_factory: pytest.TempPathFactory, window: int, factor: float, way: str, devices: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"window-{window}"
    if not folder.exists():
        tiny_llama(max_position_embeddings=window).save_pretrained(folder)
    parallel = [f"parallel={'ddp' if devices > 1 else 'single_device'}", f"parallel.devices={devices}"]
    config = composed([f"model.path={folder}", f"extension={way}", f"extension.factor={factor}", *parallel, *OUT])
    assert config.extension.target == round(factor * window)
    assert "extension.factor" not in config.followed
    assert config.finetune.first.batch_size % devices == 0
    lengths, passkeys = config.evaluate.lengths, config.evaluate.passkey_lengths
    assert lengths[-1] in passkeys
    assert set(passkeys) <= set(lengths)
    assert lengths[-1] < 256 or passkeys[0] >= 256
    # A given value is kept, and what followed from it before follows from the new one.
    longer = composed([f"model.path={folder}", f"extension={way}", f"extension.target={64 * window}", *parallel, *OUT])
    assert longer.extension.target == longer.finetune.second.length == 64 * window
    assert longer.evaluate.lengths[-1] >= longer.extension.second_target


def test_nothing_that_is_given_is_said_to_follow() -> None:
    config = composed(["experiment=demo", "search.trials=7", "search.documents=9", *OUT])
    assert (config.search.trials, config.search.documents) == (7, 9)
    assert not {"search.trials", "search.documents", "extension.target", "evaluate.lengths"} & set(config.followed)
    assert "corpus.long_tokens" in config.followed


def test_the_demo_runs_where_no_model_is_named() -> None:
    by_default, named = composed([*OUT]), composed(["experiment=demo", *OUT])
    names = [item.name for item in fields(Config)]
    assert section(by_default, *names) == section(named, *names)
    assert (by_default.model.path, by_default.extension.way) == ("models/walker", "long")


def test_what_followed_is_told_with_its_reason(published: dict[str, Path]) -> None:
    text = followed_text(composed([f"model.path={published['SmolLM2-135M']}", "plan=h100", *OUT]))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert all(line.startswith("#") for line in lines)
    assert "# extension.target 65536 extension.factor 8 times the window of 8,192" in lines
    assert "# extension.factor 8.0 as far as LongRoPE goes without training" in lines
    assert any(line.startswith("# finetune.second.learning_rate 0.0001 163 M parameters: ") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["finetune.first.learning_rate=1e-3"], "finetune.first.learning_rate=0.001 is unusual: models of 8.03 B"),
        (["finetune.second.learning_rate=1e-8"], "take 5e-07 to 6e-05"),
        (["finetune.first.batch_size=1", "finetune.first.length=131072"], "batch_size=1 makes steps of 131,072 tokens"),
        (["finetune.lora.rank=8", "finetune.first.batch_size=1", "finetune.first.length=131072"], "batch_size=1"),
    ],
)
def test_what_would_spoil_a_model_of_that_size_is_warned_of(
    published: dict[str, Path], overrides: list[str], part: str
) -> None:
    config = composed(
        [f"model.path={published['Llama-3.1-8B']}", "plan=h100", "extension.target=524288", *overrides, *OUT]
    )
    warnings = list(unusual(config, read_facts(config.model)))
    assert any(part in warning for warning in warnings), warnings
    untrained = composed([f"model.path={published['Llama-3.1-8B']}", "extension=untrained", *overrides, *OUT])
    assert not list(unusual(untrained, read_facts(untrained.model)))


def test_the_kind_of_text_follows_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.TXT").write_text("a text")
    model = f"model.path={ROOT / 'models' / 'walker'}"
    assert composed([model, f"corpus.path={tmp_path / 'texts'}", *OUT]).corpus.name == "text"
    assert composed([model, f"corpus.path={tmp_path / 'texts' / 'a.TXT'}", *OUT]).corpus.name == "text"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert composed([model, "corpus.path='~/texts'", *OUT]).corpus.name == "text"
    assert composed([model, f"corpus.path={tmp_path}/*.jsonl", *OUT]).corpus.name == "jsonl"
    embedded = composed([model, *OUT]).corpus
    assert (embedded.name, embedded.salt) == ("stdlib", "42")
