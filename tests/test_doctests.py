"""The examples in the documentation and in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

from workspace import ROOT

PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md") if ">>> " in page.read_text(encoding="utf-8"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples() -> None:
    assert "python.md" in PAGES
    assert "ropewalk.rope.profile" in MODULES


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_examples_hold(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {}, page, str(Path("docs") / page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_examples_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0
