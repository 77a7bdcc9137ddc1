"""A stage that a way of extending leaves out writes what the later ones need, in about a second and without a model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ropewalk.files import read_json
from ropewalk.models.base import extended_path
from ropewalk.models.factors import FactorsByLength, SearchedFactors
from ropewalk.rope import LengthSwitch, RopeScaling
from ropewalk.ways import LEFT_OUT, is_left_out, leave_out
from tiny_models import tiny_base
from workspace import ROOT, environment, run_script, write_overrides

PLAIN = RopeScaling((1.0,) * 8, 64, 64, method="none")
SHORTER = RopeScaling((1.0,) * 7 + (2.0,), 64, 128)
FIRST = RopeScaling((1.0,) * 6 + (2.0, 4.0), 64, 256, attention_factor=1.1)
ORIGIN = {"method": "hybrid", "trials": 8}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What the stages before fine-tuning leave of a model with a window of 64 tokens."""
    SearchedFactors(FIRST, ORIGIN, (SHORTER,)).write(tmp_path / "results" / "factors" / "first.json")
    tiny_base(original_length=64, rotary_dim=16).write(tmp_path / "results" / "base.json")
    return tmp_path / "results"


def switch_of(results: Path) -> LengthSwitch:
    leave_out("recover", inputs=results, output=results)
    return FactorsByLength.read(results / "factors" / "recovered.json").switch


def test_each_way_leaves_out_what_it_has_no_work_for() -> None:
    assert [way for way in LEFT_OUT if is_left_out("search_second", way)] == ["untrained", "trained"]
    assert [way for way in LEFT_OUT if is_left_out("finetune_second", way)] == ["untrained"]
    assert not any(is_left_out("search_first", way) for way in LEFT_OUT)
    assert not is_left_out("show", "???")


def test_without_a_recovery_the_model_keeps_its_scaling_in_its_window(results: Path) -> None:
    assert list(switch_of(results)) == [(64, PLAIN), (128, SHORTER), (256, FIRST)]
    entries = FactorsByLength.read(results / "factors" / "recovered.json").entries
    assert [entry.provenance for entry in entries] == [None, None, ORIGIN]


def test_without_a_recovery_a_checkpoint_keeps_the_scalings_that_it_came_with(results: Path) -> None:
    checkpoint_scaling = RopeScaling((1.0,) * 7 + (1.5,), 64, 96, attention_factor=1.05)
    start = LengthSwitch(((64, PLAIN), (96, checkpoint_scaling)))
    tiny_base(original_length=64, rotary_dim=16, start_switch=start).write(results / "base.json")
    assert list(switch_of(results)) == [(64, PLAIN), (96, checkpoint_scaling), (128, SHORTER), (256, FIRST)]


def test_without_a_recovery_the_query_scales_of_the_longest_hold_in_the_window_too(results: Path) -> None:
    scales = ((2.0, 1.0, 1.0, 0.5),) * 2
    SearchedFactors(replace(FIRST, query_scales=scales)).write(results / "factors" / "first.json")
    switch = switch_of(results)
    assert switch.lengths == (64, 128, 256)
    assert {scaling.query_scales for scaling in switch.scalings} == {scales}
    assert switch.for_length(64) == replace(PLAIN, query_scales=scales)
    assert switch.for_length(256) == replace(FIRST, query_scales=scales)


def test_without_a_recovery_doublings_of_the_window_have_interpolated_factors(results: Path) -> None:
    SearchedFactors(FIRST, ORIGIN).write(results / "factors" / "first.json")
    switch = switch_of(results)
    assert switch.lengths == (64, 128, 256)
    halfway = switch.for_length(128)
    assert halfway.factors == pytest.approx((1.0,) * 6 + (2**0.5, 2.0))
    assert halfway.attention_factor == pytest.approx(1.1**0.5)


def test_without_a_second_search_the_first_factors_are_the_last(results: Path) -> None:
    leave_out("search_second", inputs=results, output=results)
    assert SearchedFactors.read(results / "factors" / "second.json").scaling == FIRST
    assert FactorsByLength.read(results / "factors" / "second_by_length.json").entries == ()


def test_the_extended_model_is_the_base_model_unless_one_was_trained(results: Path) -> None:
    base, checkpoints = tiny_base(path="models/base"), results / "checkpoints"
    tuned = checkpoints / "finetune_second"
    tuned.mkdir(parents=True)
    (tuned / "config.json").write_text("{}")
    assert extended_path(base, checkpoints) == str(tuned)
    leave_out("finetune_second", inputs=results, output=results)
    assert [path.name for path in tuned.iterdir()] == ["left_out.txt"], "no model of an earlier training"
    assert extended_path(base, checkpoints) == "models/base"


def test_stages_that_are_left_out_wait_for_no_library(scratch: Path, results: Path) -> None:
    for name in ("tokens", "checkpoints/finetune_first"):
        (results / name).mkdir(parents=True)
    write_overrides(scratch, "experiment=demo", "extension=untrained")
    run_script("compose")
    code = (
        "import runpy, sys\n"
        f"for stage in {LEFT_OUT['untrained']}:\n"
        f"    sys.argv = [stage, '-cp', '{scratch}', '-cn', 'resolved']\n"
        f"    runpy.run_path(f'{ROOT / 'pipelines'}/{{stage}}.py', run_name='__main__')\n"
        "slow = {'torch', 'transformers', 'mlflow', 'lightning', 'optuna'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=scratch, env=environment(ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [f"{stage}: nothing to do with extension.way=untrained" for stage in LEFT_OUT["untrained"]]
    assert done.stdout.splitlines() == lines
    for stage in LEFT_OUT["untrained"]:
        assert read_json(results / "metrics" / f"{stage}.json") == {}
    assert not (scratch / "work").exists()
