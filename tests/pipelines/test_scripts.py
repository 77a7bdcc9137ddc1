"""Every script is thin, and tells its configuration and its choices when asked."""

import ast
from pathlib import Path
from typing import Any

import pytest

from ropewalk import tracking
from workspace import APPS, ROOT, SCRIPTS, run_script


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_under_60_lines(name: str) -> None:
    assert len((ROOT / "pipelines" / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_is_and_does_nothing_when_imported(name: str) -> None:
    module = ast.parse((ROOT / "pipelines" / f"{name}.py").read_text())
    assert ast.get_docstring(module)
    idle = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign, ast.Expr)
    *rest, last = module.body
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    assert all(isinstance(node, idle) for node in rest)


@pytest.mark.parametrize("name", APPS)
def test_an_app_prints_its_configuration(scratch: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run_script(name, "--cfg", "job", "search=fast", "seed=3")
    printed = capsys.readouterr().out
    assert "seed: 3" in printed
    assert "name: fast" in printed
    assert {path.name for path in scratch.iterdir()} == {"models"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_helps(scratch: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as raised:
        run_script(name, "--help")
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    if name in APPS:
        assert "search: cmaes, evolution, fast, gradient, hybrid, longrope2, paper, random, tpe" in printed
    else:
        assert "overrides.yaml" in printed
    assert {path.name for path in scratch.iterdir()} == {"models"}


def test_the_walker_is_recorded_with_the_commit_of_the_code(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr("ropewalk.models.walker.make_walker", lambda config, **values: made.update(values))
    run_script("walker")
    assert made["commit"] == tracking.commit_of(ROOT)
    assert made["folder"] == ROOT / "models" / "walker"
