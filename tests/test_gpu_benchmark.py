"""The comparison of a GPU with the processor, on a processor and with tiny models."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workspace import ROOT


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    path = ROOT / "benchmarks" / "gpu" / "run.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module, before = importlib.util.module_from_spec(spec), list(sys.path)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules["gpu_benchmark"]


def lines_of(bench: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = bench.main(list(arguments))
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.numeric
def test_every_case_runs_on_tiny_models(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    code, lines = lines_of(bench, capsys, "--tiny", "--results", str(results))
    assert code == 0, lines
    names = [name for make in bench.TINY.values() for name in bench.cases_of(make())]
    assert [line.endswith(" ok") for line in lines[:-1]] == [True] * len(names)
    assert lines[-1] == f"{len(names)} of {len(names)} cases are as on the processor"
    assert results.is_file() == torch.cuda.is_available()
    if results.is_file():
        assert {row["failure"] for row in json.loads(results.read_text())["rows"]} == {None}


def test_the_plans_figures_stand_beside_the_measured_ones(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = lines_of(bench, capsys, "--models", "tiny", "--cases", "whole", "--plan", "h100")
    assert code == 0
    assert "of it planned)" in lines[0]


def test_an_unknown_plan_is_told(bench: Any) -> None:
    with pytest.raises(ValueError, match=r"^--plan h900 is no file of conf/plan; take one of a100, "):
        bench.main(["--models", "tiny", "--plan", "h900"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is replaced is the processor's attention")
def test_wrong_and_failing_cases_are_told_after_all_have_run(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ropewalk.models import prefill

    original = prefill._joined_attention

    def shifted(query: Any, key: Any, value: Any, **options: Any) -> Any:
        # The trial with 13 tokens passes.
        keys = key if key.shape[2] < 20 else key.roll(1, dims=2)
        return original(query, keys, value, **options)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(prefill, "_joined_attention", shifted)
    monkeypatch.setattr("gpu.cases.make_optimizer", broken)
    cases = ["chunks", "chunks, float32", "training step, full", "ring"]
    code, lines = lines_of(bench, capsys, "--models", "tiny", "--cases", *cases)
    assert code == 1
    assert lines[0].endswith("FAILED: the error is above 0.04")
    assert lines[1].endswith("FAILED: the error is above 0.002")
    assert lines[2] == "tiny, training step, full: FAILED: no kernel image is available for execution on the device"
    assert lines[3].endswith(" ok")
    assert lines[4] == "1 of 4 cases are as on the processor"
