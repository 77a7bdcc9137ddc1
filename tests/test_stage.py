"""What every stage script shares: folders, the key of resumable state, and one line for what a user can put right."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from ropewalk.app import resolved_yaml
from ropewalk.composition import checked, register, with_demo
from ropewalk.config import Config
from ropewalk.stage import Stage, run
from tiny_models import tiny_base
from workspace import ROOT

Run = Callable[..., None]


def config(folder: Path, *overrides: str) -> Config:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        changed = [f"output={folder / 'out'}", f"work={folder / 'work'}", *overrides]
        return checked(compose("config", with_demo(changed)))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("search_first", config(tmp_path), ("search", "model"), inputs_hash="a")


@pytest.fixture
def run_stage(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`ropewalk.stage.run` as a script of its own would call it, without MLflow."""
    monkeypatch.setattr("ropewalk.tracking.stage_run", lambda *_, **__: nullcontext())
    # Not Hydra's own logging set-up, which would hold on to this test's streams.
    monkeypatch.setattr("hydra.core.utils.configure_log", lambda *arguments: None)

    def run_it(work: Callable[[Stage], Any], *overrides: str, inputs: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(sys, "argv", ["base.py", *overrides])
        run("base", work, sections=("model",), inputs=inputs)

    return run_it


def message(raised: pytest.ExceptionInfo[SystemExit]) -> str:
    text = str(raised.value.code)
    assert len(text.splitlines()) == 1
    return text


def test_state_lies_below_the_work_folder_under_the_name_of_the_stage(stage: Stage, tmp_path: Path) -> None:
    assert stage.state.parent == tmp_path / "work" / "search_first"
    assert stage.state.is_dir()
    assert stage.state == replace(stage).state


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["search.trials=7"], False),
        (["model.dtype=bfloat16"], False),
        (["seed=1"], False),
        (["finetune.first.steps=7"], True),
        (["evaluate.passkey_trials=50"], True),
        (["search.workers=4", "search.storage=postgresql+psycopg://user@host/name"], True),
    ],
)
def test_state_is_of_the_sections_that_the_stage_reads_and_the_seed(
    stage: Stage, tmp_path: Path, overrides: list[str], same: bool
) -> None:
    other = replace(stage, config=config(tmp_path, *overrides))
    assert (other.state == stage.state) == same
    assert (other.config_hash == stage.config_hash) == same


def test_state_is_of_the_inputs_and_the_config_hash_is_not(stage: Stage) -> None:
    other = replace(stage, inputs_hash="b")
    assert other.state != stage.state
    assert other.config_hash == stage.config_hash


def test_inputs_are_told_apart_by_their_bytes(run_stage: Run, scratch: Path) -> None:
    states: list[Path] = []

    def work(stage: Stage) -> None:
        states.append(stage.state)

    def run_with(text: str, **more: str) -> Path:
        for name, content in {"tokens/a.bin": text, **more}.items():
            path = scratch / "results" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        run_stage(work, "work=work", inputs=("tokens",))
        return states.pop()

    first = run_with("one")
    assert run_with("one") == first
    assert run_with("two") != first
    # Left by a process that was killed while it wrote: no input.
    assert run_with("one", **{"tokens/.b.bin.writing-1": "half"}) == first
    assert run_with("one", **{"tokens/b.bin": "whole"}) != first


def test_an_input_that_is_not_there_is_named_before_the_stage_begins(run_stage: Run) -> None:
    with pytest.raises(SystemExit) as raised:
        run_stage(lambda stage: pytest.fail("began"), inputs=("base.json",))
    assert message(raised) == (
        "base: results/base.json is not there; run the stage that makes it first "
        "(`dvc repro` and pipelines/extend.py run them all)"
    )


def test_a_target_inside_the_window_of_the_base_model_is_refused(run_stage: Run, scratch: Path) -> None:
    tiny_base(original_length=4096).write(scratch / "results" / "base.json")
    with pytest.raises(SystemExit) as raised:
        run_stage(lambda stage: pytest.fail("began"), inputs=("base.json",))
    assert "extension.target must be above the model's window, found 2048 and 4096" in message(raised)


def test_results_of_a_run_alone_go_to_a_folder_of_its_own(run_stage: Run, scratch: Path) -> None:
    outputs: list[Path] = []
    for _ in range(2):
        run_stage(lambda stage: outputs.append(stage.output))
    assert len(set(outputs)) == 2
    assert all(output.is_relative_to(scratch / "outputs") for output in outputs)


def test_state_is_kept_until_the_stage_is_done(run_stage: Run, scratch: Path) -> None:
    def work(stage: Stage) -> None:
        half = stage.state / "half"
        if not half.is_file():
            half.write_text("")
            raise ValueError("stopped")

    with pytest.raises(SystemExit):
        run_stage(work, "work=work")
    assert list((scratch / "work" / "base").rglob("half"))
    run_stage(work, "work=work")
    assert not list((scratch / "work" / "base").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no long\n  documents"),
        FileNotFoundError("no long documents"),
        OSError(errno.ENOSPC, "no long documents"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_code_1(
    run_stage: Run, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def work(stage: Stage) -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        run_stage(work)
    assert message(raised).startswith("base: ")
    assert message(raised).endswith("no long documents")
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_is_told_where_sqlite_hides_it(run_stage: Run) -> None:
    def work(stage: Stage) -> None:
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO ...]")

    with pytest.raises(SystemExit) as raised:
        run_stage(work)
    assert message(raised) == "base: no space left on the disk; free some and run the same command again"


def test_a_fault_of_ours_keeps_its_traceback(run_stage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(stage: Stage) -> None:
        raise KeyError("lengths")

    with pytest.raises(KeyError):
        run_stage(work)
    monkeypatch.setenv("ROPEWALK_TRACEBACK", "1")
    with pytest.raises(ValueError, match="shown"):
        run_stage(lambda stage: (_ for _ in ()).throw(ValueError("shown")).__next__())


def test_an_interrupt_is_one_line_that_says_how_to_resume(run_stage: Run) -> None:
    with pytest.raises(SystemExit) as raised:
        run_stage(lambda stage: os.kill(os.getpid(), signal.SIGINT))
    assert message(raised) == "base: interrupted; run the same command again to resume"


def test_jobs_of_a_sweep_write_below_multirun_only(run_stage: Run, scratch: Path) -> None:
    outputs: list[Path] = []
    sweep = ("-m", "seed=0,1", "~hydra.callbacks.sweep_parent")
    run_stage(lambda stage: outputs.append(stage.output), *sweep)
    assert len(set(outputs)) == 2
    assert all(output.is_relative_to(scratch / "multirun") for output in outputs)
    with pytest.raises(SystemExit) as raised:
        run_stage(lambda stage: pytest.fail("began"), *sweep, "output=results")
    assert "output must be left out in a sweep, whose jobs write below multirun/" in message(raised)


def test_a_resolved_configuration_is_a_hydra_configuration_of_its_own(run_stage: Run, scratch: Path) -> None:
    (scratch / "resolved.yaml").write_text(resolved_yaml(config(scratch, "seed=9", "output=results", "work=work")))
    seen: list[Stage] = []
    run_stage(seen.append, "-cp", str(scratch), "-cn", "resolved")
    assert (seen[0].config.seed, seen[0].output) == (9, Path("results"))
    assert {path.name for path in scratch.iterdir()} == {"models", "resolved.yaml", "out", "work"} - {"out"}
