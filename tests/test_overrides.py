"""Whatever is written as an override, alone or in a sweep, it composes or is refused in one line that names it."""

import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.composition import composed
from ropewalk.config import Config
from ropewalk.defaults.follow import RULES
from ropewalk.stage import Stage, run
from workspace import ROOT

CONF = ROOT / "conf"
GROUPS = sorted({str(path.parent.relative_to(CONF)) for path in CONF.rglob("*/*.yaml")})
VALUES = (
    # Numbers, words and texts, some of them too large, too precise or of another kind than the key's.
    "0 1 -1 0.5 1.5 1e9 nan inf -inf 99999999999999999999 0x10 true null x a:b $x ../a/b 'a,b' '' ??? '???' none full "
    # Lists and mappings.
    "[] [1] [0] [[1]] [null] [a,b] [{}] [???] [{length:1}] {} {a:1} {a:{b:1}} {a:{name:text,path:x}} {name:mixture} "
    # Interpolations.
    "${seed} ${model} ${model.name} ${nope} ${.name} ${..seed} ${search.fitness.weights} ${evaluate.lengths} [${seed}] "
    "{a:${nope}} ${oc.env:NOPE} ${corpus} ${extension} ${search.trials} ${hydra:runtime.output_dir} "
    # What Hydra's grammar takes for a sweep or a function, or does not take.
    "1,2 range(1,3) choice(1,2) glob(*) int(3.5) a=b (x x] [1 [1,] {a:1 o'hara é ~ * !x @y \\ ${seed"
).split()
WALKER = ROOT / "models" / "walker"
ODD_NAMES = ["a,b", "c=3 (d)", "e f"]
STRAY = ["hydra", "hydra.run.dir", "seed.a.b", "a@b", "corpus.sources.a.name", "finetune.before_first.0.length"]


def keys(kind: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(kind):
        yield prefix + item.name
        if is_dataclass(item.type):
            yield from keys(item.type, f"{prefix}{item.name}.")


@st.composite
def override(draw: st.DrawFn) -> str:
    values = st.sampled_from(VALUES)
    key = draw(st.one_of(st.sampled_from(list(keys(Config))), st.sampled_from(GROUPS), st.sampled_from(STRAY)))
    if key in GROUPS:
        values |= st.sampled_from(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
    change = draw(st.sampled_from(["none", "none", "none", "none", "misspelt", "below", "item"]))
    if change == "misspelt":
        place = draw(st.integers(0, len(key) - 1))
        key = key[:place] + draw(st.sampled_from(["", "x", ".", "/", "[0]"])) + key[place + 1 :]
    elif change != "none":
        key += {"below": ".x", "item": ".0"}[change]
    prefix = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
    return prefix + key if prefix == "~" and draw(st.booleans()) else f"{prefix}{key}={draw(values)}"


OVERRIDES = st.lists(override(), min_size=1, max_size=2)


def composes_or_is_one_line(overrides: list[str]) -> None:
    try:
        composed([*overrides, "output=out", "work=work"])
    except ValueError as error:
        is_one_line_that_names(str(error), overrides, start="configuration: ")


def is_one_line_that_names(message: str, overrides: list[str], *, start: str = "base: ") -> None:
    assert message.startswith(start)
    assert len(message.splitlines()) == 1
    names = {name for text in overrides for name in re.findall(r"\w{2,}|^\W*\w", text.partition("=")[0])}
    assert not names or any(name.lstrip("+~") in message for name in names)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(OVERRIDES)
def test_overrides_compose_or_are_refused_in_one_line_that_names_them(overrides: list[str]) -> None:
    composes_or_is_one_line(overrides)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(OVERRIDES)
def test_200_overrides_compose_or_are_refused_in_one_line_that_names_them(overrides: list[str]) -> None:
    composes_or_is_one_line(overrides)


@pytest.mark.parametrize("name", ["epoch=3-step=1000", "my model (v2)", "o'hara", "run,2"])
def test_a_value_with_special_characters_is_refused_with_the_quoted_one_that_is_accepted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).symlink_to(WALKER)
    with pytest.raises(ValueError, match=r"^configuration: model\.path=.* quote ") as raised:
        composed([*"output=out work=work model=hf".split(), f"model.path=models/{name}"])
    quoted = re.search(r": (model\.path='.*') \(on a command line", str(raised.value))
    assert quoted is not None
    assert composed([*"output=out work=work model=hf".split(), quoted[1]]).model.path == f"models/{name}"


@pytest.mark.parametrize("key", [key for key in keys(Config) if key not in RULES][::10])
def test_a_key_cannot_be_made_mandatory(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^configuration: .*\b{re.escape(key)}\b"):
        composed([*(text for text in ("output=out", "work=work") if not text.startswith(key)), f"{key}=???"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of all sweeps, in which MLflow's tables are made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("sweeps")
        (folder / "models").symlink_to(ROOT / "models")
        for name in ODD_NAMES:
            (folder / name).symlink_to(WALKER)
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder
    HydraConfig.instance().cfg = None


def sweep(overrides: list[str]) -> list[Config] | str:
    """The configurations of the jobs of a sweep, or the message with which the process would end."""
    configs: list[Config] = []

    def work(stage: Stage) -> None:
        configs.append(stage.config)

    # Hydra's loggers would stay for the tests that follow, and a run around the sweep takes a second.
    quiet = ["hydra/job_logging=none", "~hydra.callbacks.sweep_parent"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["base.py", "-m", *quiet, *overrides])
        try:
            run("base", work, sections=("model",))
        except SystemExit as ended:
            return str(ended.code)
    return configs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("a.b=[1,", r"a\.b=\[1, is not in Hydra's grammar; quote its value: a\.b='\[1,'"),
        ("+x=${", r"\+x=\$\{ is not in Hydra's grammar; quote its value"),
        ("model.path=a=b", "model.path=a=b is not in Hydra's grammar; quote its value: model.path='a=b'"),
        ("seed=1,2 nonsense=x", "unknown key nonsense; allowed are seed, "),
        ("seed=1,2 nonsense/group=x", "nonsense/group"),
        ("corpus=stdlib,nonsense", "corpus has no choice nonsense; allowed are auto, jsonl, "),
        ("corpus.sources.languages=0.5", r"unknown key corpus\.sources\.languages; a key is added"),
        ("seed=1,x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
        ("seed=-2,-1", "seed must not be negative, found -2"),
        ("seed=???", "seed must be given"),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
        ("seed=range(3,1)", r"seed=range\(3,1\) gives no value to sweep over"),
        ("model=glob(nonsense)", r"model=glob\(nonsense\) gives no value to sweep over"),
        ("seed=range(0,3,0)", r"seed=range\(0,3,0\) cannot be applied: range\(\) arg 3 must not be zero"),
        ("seed=interval(1,2)", r"seed=interval\(1,2\) cannot be applied: BasicSweeper does not support"),
        ("seed=1 experiment=null,smoke", "experiment=null,smoke cannot be applied: .*experiment takes one of demo, "),
        (
            "search.fitness=mix,needles",
            "search.fitness: .*; search/fitness takes one of joint, mix, needles, perplexity",
        ),
        ("~model=1,2", "~model=1"),
        ("hydra.sweep.dir=a,b", "Sweeping over Hydra's configuration is not supported : 'hydra.sweep.dir=a,b'"),
        ("hydra.sweeper=nonsense", "hydra.sweeper=nonsense cannot be applied: .*; hydra/sweeper takes one of basic"),
        ("hydra/sweeper=nonsense", "hydra/sweeper has no choice nonsense; allowed are basic"),
        ("hydra/launcher=nonsense", "hydra/launcher has no choice nonsense; allowed are basic, submitit_local, "),
        ("hydra.launcher._target_=nonsense.x", "hydra.launcher._target_=nonsense.x cannot be applied: Invalid plugin"),
        ("hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size=0 .*: assert .*max_batch_size > 0"),
        ("hydra.sweeper.params={seed:1}", r"hydra\.sweeper\.params=\{seed:1\} cannot be applied"),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_line_that_names_the_override(
    folder: Path, overrides: str, message: str
) -> None:
    ended = sweep(overrides.split(" "))
    assert isinstance(ended, str)
    assert re.match(f"base: configuration: .*{message}", ended)
    assert "\n" not in ended


def test_a_sweep_has_a_job_for_each_of_its_values_with_commas_blanks_and_equal_signs(folder: Path) -> None:
    configs = sweep(["model=hf", "model.path='a,b','c=3 (d)',e f"])
    assert [config.model.path for config in configs if isinstance(config, Config)] == ODD_NAMES


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(overrides=OVERRIDES)
def test_sweeps_run_or_are_refused_in_one_line_that_names_them(folder: Path, overrides: list[str]) -> None:
    ended = sweep(overrides)
    if isinstance(ended, str):
        is_one_line_that_names(ended, overrides)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(overrides=OVERRIDES)
def test_30_sweeps_run_or_are_refused_in_one_line_that_names_them(folder: Path, overrides: list[str]) -> None:
    ended = sweep(overrides)
    if isinstance(ended, str):
        is_one_line_that_names(ended, overrides)
