"""dvc.yaml says of every stage what it really reads and writes, as far as the sources tell."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.config import Config
from ropewalk.files import read_table
from ropewalk.models.factors import SearchedFactors
from ropewalk.rope import RopeScaling
from ropewalk.ways import LEFT_OUT, leave_out
from tiny_models import tiny_base
from workspace import ROOT, SCRIPTS, run_script

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ORDER = (
    "compose prepare base prompts search_first finetune_first finetune_second finetune_baselines search_second recover "
    "evaluate export report"
).split()
OWN = [name for name in ORDER if name != "compose"]


def entries(stage: str, key: str) -> list[str]:
    """Names in a list of dvc.yaml, without the options behind them."""
    return [next(iter(item)) if isinstance(item, dict) else item for item in STAGES[stage].get(key, [])]


def written(stage: str) -> list[str]:
    return [*entries(stage, "outs"), *entries(stage, "metrics"), *entries(stage, "plots")]


def script(name: str) -> ast.Module:
    return ast.parse((ROOT / "pipelines" / f"{name}.py").read_text())


def test_stages_are_those_of_the_pipeline_in_its_order() -> None:
    assert list(STAGES) == ORDER
    assert set(SCRIPTS) == {*ORDER, "doctor", "extend", "plan", "push", "show", "sweep", "walker"}


@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_runs_its_script_and_depends_on_it(stage: str) -> None:
    resolved = "" if stage == "compose" else ' -cp "$PWD" -cn resolved'
    assert STAGES[stage]["cmd"] == f"python pipelines/{stage}.py{resolved}"
    assert f"pipelines/{stage}.py" in entries(stage, "deps")


def test_what_a_stage_needs_is_there_before_it() -> None:
    made = {"conf", "models"}
    for stage in ORDER:
        for dep in entries(stage, "deps"):
            if dep.startswith("results/"):
                assert any(dep == out or dep.startswith(f"{out}/") for out in made), f"{stage} needs {dep}"
        made.update(written(stage))


def module_path(name: str) -> Path | None:
    path = ROOT / "src" / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of ours that a file imports, also inside functions; not those for type checkers alone."""
    names: set[str] = set()
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(name for name in names if name.split(".")[0] == "ropewalk" and module_path(name))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def packages(start: Path) -> set[str]:
    """Packages of src/ropewalk whose modules are loaded, from one module to the next, when ``start`` runs.

    Without `config` and `defaults`, whose values the stage compose makes parameters of the others, and without what is
    drawn for MLflow alone.
    """
    for_mlflow = {"ropewalk.report.mlflow_runs"}
    todo, seen = list(imported(start) - for_mlflow), set[str]()
    while todo:
        name = todo.pop()
        path = module_path(name)
        # Importing a module runs the packages above it.
        above = name.rpartition(".")[0]
        if name in seen or path is None:
            continue
        seen.add(name)
        # `import ropewalk` loads nothing but what is asked of it.
        todo += [above] if above else []
        todo += imported(path) - for_mlflow if name != "ropewalk" else []
    names = {
        name.split(".")[1] for name in seen if "." in name and (ROOT / "src/ropewalk" / name.split(".")[1]).is_dir()
    }
    return names if start.stem == "compose" else names - {"config", "defaults"}


@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_depends_on_exactly_the_packages_that_it_imports(stage: str) -> None:
    declared = {dep.removeprefix("src/ropewalk/") for dep in entries(stage, "deps") if dep.startswith("src/")}
    assert declared == packages(ROOT / "pipelines" / f"{stage}.py")


@dataclass(frozen=True)
class Call:
    """What a script gives to `ropewalk.stage.run`."""

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    by_stage: dict[str, Call] = {}

    def record(name: str, work: Any, *, sections: tuple[str, ...], inputs: tuple[str, ...] = (), **_: Any) -> None:
        by_stage[name] = Call(name, tuple(sections), tuple(inputs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ropewalk.stage.run", record)
        for stage in OWN:
            run_script(stage)
    return by_stage


@pytest.mark.parametrize("stage", OWN)
def test_a_stage_depends_on_the_sections_that_it_reads(calls: dict[str, Call], stage: str) -> None:
    (params,) = (item["resolved.yaml"] for item in STAGES[stage]["params"] if "resolved.yaml" in item)
    sections = {item.name for item in fields(Config)}
    # The way decides before a section is read.
    assert set(params) - {"seed", "extension.way"} == set(calls[stage].sections)
    assert set(params) - {"extension.way"} <= sections


def test_a_stage_that_a_way_leaves_out_depends_on_the_way_and_writes_all_its_results(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    first = RopeScaling((1.0, 2.0), 8, 16)
    SearchedFactors(first, {"method": "hybrid"}).write(inputs / "factors" / "first.json")
    tiny_base(original_length=8).write(inputs / "base.json")
    left_out = dict.fromkeys(stage for stages in LEFT_OUT.values() for stage in stages)
    assert left_out
    for stage in left_out:
        (params,) = (item["resolved.yaml"] for item in STAGES[stage]["params"] if "resolved.yaml" in item)
        assert {"extension", "extension.way"} & set(params)
        leave_out(stage, inputs=inputs, output=tmp_path / "results")
        for out in written(stage):
            path = tmp_path / out
            assert path.exists(), out
            assert path.suffix != ".csv" or not read_table(path)
            assert not path.is_dir() or [file.name for file in path.iterdir()] == ["left_out.txt"]


@pytest.mark.parametrize("stage", OWN)
def test_a_stage_depends_on_the_results_that_it_asks_for(calls: dict[str, Call], stage: str) -> None:
    deps = {dep.removeprefix("results/") for dep in entries(stage, "deps") if dep.startswith("results/")}
    inputs = set(calls[stage].inputs)
    assert all(any(below(dep, name) for name in inputs) for dep in deps), "a dependency that is not asked for"
    assert all(any(below(dep, name) for dep in deps) for name in inputs), "asked for, but no dependency"


def below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def outputs(stage: str) -> set[str]:
    """Paths below ``stage.output`` that a script spells, a name made at run time as *."""
    known: dict[str, str] = {}
    paths: set[str] = set()

    def path_of(node: ast.expr) -> str | None:
        if ast.unparse(node) == "stage.output":
            return "results"
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and (left := path_of(node.left)):
            right = node.right
            pieces = right.values if isinstance(right, ast.JoinedStr) else [right]
            return f"{left}/{''.join(p.value if isinstance(p, ast.Constant) else '*' for p in pieces)}"
        return None

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (path := path_of(node.value)):
            known[node.targets[0].id] = path
        if isinstance(node, ast.expr) and (path := path_of(node)):
            paths.add(path)
            return
        # `ropewalk.search.distributed.publish` writes a search's table, and factors files by their names.
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "publish":
            paths.add(f"results/plots/{stage}.csv")
        if isinstance(node, ast.Dict):
            names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            paths.update(f"results/factors/{name}" for name in names if str(name).endswith(".json"))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(script(stage))
    return paths - {"results"}


@pytest.mark.parametrize("stage", OWN)
def test_a_result_that_a_script_writes_is_declared(stage: str) -> None:
    declared = written(stage)
    for path in outputs(stage):
        assert any(fnmatch(out, path) or below(out, path) or below(path, out) for out in declared), path
    if "stage.write_metrics" in ast.unparse(script(stage)):
        # DVC shows the report's, the handful that runs are compared by.
        kind = "metrics" if stage == "report" else "outs"
        assert f"results/metrics/{stage}.json" in entries(stage, kind)


@pytest.mark.parametrize("stage", OWN)
def test_a_declared_result_is_one_that_the_script_writes(stage: str) -> None:
    spelt = outputs(stage)
    # The report's pictures are named where they are drawn, and metrics by the stage.
    for out in set(entries(stage, "outs")) - {f"results/metrics/{stage}.json"}:
        assert out.endswith(".png") or any(fnmatch(out, path) for path in spelt), out


@pytest.mark.parametrize("stage", ["compose", "prepare", "base"])
def test_a_stage_that_reads_the_embedded_model_depends_on_it(stage: str) -> None:
    assert "models" in entries(stage, "deps")


def test_dvc_shows_the_metrics_of_the_report_alone() -> None:
    assert {stage: entries(stage, "metrics") for stage in ORDER if entries(stage, "metrics")} == {
        "report": ["results/metrics/report.json"]
    }


def test_two_stages_never_write_the_same_result() -> None:
    all_written = [out for stage in ORDER for out in written(stage)]
    assert not [(a, b) for a in all_written for b in all_written if a is not b and below(a, b)]


def test_only_what_every_run_makes_anew_is_left_out_of_the_cache() -> None:
    uncached = [
        name for stage in STAGES.values() for item in stage.get("outs", []) if isinstance(item, dict) for name in item
    ]
    assert uncached == ["resolved.yaml"]
