"""Every command of the README is run: by .ci/run, or by a test that is named here."""

import ast
import re

import pytest

from workspace import ROOT

TESTED = {
    r"dvc repro": "pipelines/test_pipeline.py::test_a_second_repro_reruns_nothing_in_under_10_seconds",
    r"dvc exp run -S .*": "pipelines/test_redpajama_pipeline.py::test_the_pipeline_runs_on_redpajama_as_an_experiment",
    r"dvc exp show( .*)?": "pipelines/test_redpajama_pipeline.py::test_the_pipeline_runs_on_redpajama_as_an_experiment",
    r"python pipelines/evaluate\.py -m rope=pi,yarn,longrope evaluate=fast": (
        "pipelines/test_pipeline.py::test_a_sweep_on_the_results_leaves_them_as_they_are"
    ),
    r"python pipelines/plan\.py plan=h100": (
        "plan/test_plan.py::test_the_script_prints_a_line_for_every_stage_and_needs_no_weights"
    ),
    r"python pipelines/extend\.py model\.path=.* corpus\.path=.*": (
        "pipelines/test_extend.py::test_a_sweep_over_targets_extends_to_each_and_resumes"
    ),
    r"python pipelines/show\.py model\.path=models/walker": (
        "pipelines/test_show.py::test_the_walker_is_shown_as_plain_rope"
    ),
    r"python pipelines/push\.py push\.folder=.*": (
        "export/test_push.py::test_the_registrys_model_loads_back_and_predicts"
    ),
    r"make ui": "pipelines/test_pipeline.py::test_the_ui_shows_the_runs",
    r"python pipelines/compose\.py --cfg job": "test_config.py::test_compose_prints_the_configuration",
    r"python pipelines/(?!compose)\w+\.py --cfg job": "pipelines/test_scripts.py::test_an_app_prints_its_configuration",
    r"python pipelines/\w+\.py --help": "pipelines/test_scripts.py::test_a_script_helps",
}
"""A pattern of the whole command -> the test that runs it."""


def commands() -> list[str]:
    """Every command of the README's bash blocks: one a line, without comments; a backslash joins lines."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    bare = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines)
    return list(dict.fromkeys(" ".join(line.split()) for line in bare if line))


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(commands())


def test_every_command_is_run_by_ci_or_by_a_test() -> None:
    ci = {line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()}
    untested = [
        command
        for command in commands()
        if command not in ci and not any(re.fullmatch(pattern, command) for pattern in TESTED)
    ]
    assert not untested, f"run these in .ci/run, or name their tests in {__name__}.TESTED: {untested}"


@pytest.mark.parametrize("test", sorted(set(TESTED.values())))
def test_a_test_that_is_named_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    module = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md", "docs/resuming.md"])
def test_the_modules_that_a_page_names_are_there(page: str) -> None:
    names = re.findall(r"(?:src/ropewalk/)?\b((?:[a-z_]+/)+[a-z_]+\.py)\b", (ROOT / page).read_text())
    assert names
    assert not [
        name for name in names if not any((folder / name).is_file() for folder in (ROOT, ROOT / "src/ropewalk"))
    ]
