"""Stages in one process are run once for a configuration and its inputs, and again where one of these has changed."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from ropewalk.chain import Job, Link, chain, is_whole, jobs_text, run_chain, working_links
from ropewalk.composition import composed
from ropewalk.config import Config
from ropewalk.files import write_json, write_text
from ropewalk.models.factors import SearchedFactors
from ropewalk.rope import RopeScaling
from ropewalk.stage import Stage
from tiny_models import tiny_base

WORKING = ["prepare", "base", "prompts", "search_first", "evaluate", "export", "report"]


@pytest.fixture
def config(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("ropewalk.tracking.stage_run", lambda *_, **__: nullcontext())
    folders = ["output=out", "inputs=out", "work=out/work"]
    return composed(["experiment=demo", "extension=untrained", *folders])


class Work:
    """Work of every stage that writes its declared results, and a record of the stages that did so."""

    def __init__(self, fails_at: str = "") -> None:
        self.ran: list[str] = []
        self.fails_at = fails_at

    def __call__(self, name: str, stage: Stage) -> None:
        self.ran.append(name)
        (link,) = (link for link in chain() if link.name == name)
        for output in link.outputs:
            path = stage.output / output
            if name == self.fails_at:
                raise KeyboardInterrupt
            if output == "base.json":
                tiny_base(original_length=256).write(path)
            elif output == "factors/first.json":
                SearchedFactors(RopeScaling((1.0, 2.0), 256, 2048)).write(path)
            elif output == "tokens":
                write_text(path / "card.json", "{}")
                write_text(path / "test" / "file", name)
            elif path.suffix:
                write_text(path, "{}")
            else:
                write_text(path / "file", name)


def ran(config: Config, fails_at: str = "") -> list[str]:
    work = Work(fails_at)
    try:
        run_chain(config, work)
    except KeyboardInterrupt:
        assert fails_at
    return work.ran


def test_the_chain_is_that_of_dvc(config: Config) -> None:
    links = {link.name: link for link in chain()}
    assert [link.name for link in working_links(config)] == WORKING
    assert links["search_first"].sections == ("extension", "search", "model")
    assert links["search_first"].inputs == ("base.json", "tokens")
    assert "metrics/evaluate.json" in links["evaluate"].outputs
    assert links["finetune_first"].sections == ("finetune", "model")


def test_what_is_done_is_not_done_again(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_whole(config)
    assert ran(config) == WORKING
    assert is_whole(config)
    capsys.readouterr()
    assert ran(config) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[{number}/7] {name}, done before" for number, name in enumerate(WORKING, start=1)]


def test_an_interrupted_chain_goes_on_with_the_stage_that_was_interrupted(config: Config) -> None:
    assert ran(config, fails_at="search_first")[-1] == "search_first"
    assert ran(config) == ["search_first", "evaluate", "export", "report"]


def test_a_stage_runs_again_where_what_it_reads_or_wrote_has_changed(config: Config) -> None:
    ran(config)
    evaluate = replace(config, evaluate=replace(config.evaluate, passkey_trials=40))
    assert ran(evaluate) == ["prompts", "evaluate", "export", "report"]
    assert ran(config) == ["prompts", "evaluate", "export", "report"]
    (Path(config.output) / "factors" / "first.json").unlink()
    assert ran(config) == ["search_first"], "whose result is the same as before"
    write_text(Path(config.output) / "plots" / "perplexity.csv", "other")
    assert ran(config) == ["export", "report"]


def test_jobs_are_told_apart_by_the_overrides_that_differ(tmp_path: Path) -> None:
    jobs = []
    for target, figures in ((512, {"perplexity_at_target": 12.345}), (1024, {"tokens": 2048.0})):
        write_json(tmp_path / str(target) / "metrics" / "report.json", figures)
        jobs.append(Job(frozenset({"model.path=m", f"extension.target={target}"}), tmp_path / str(target)))
    lines = [line.split() for line in jobs_text(jobs).splitlines()]
    assert lines[0] == ["perplexity", "at", "target", "tokens", "folder"]
    assert lines[1] == ["extension.target=512", "12.3", str(tmp_path / "512")]
    assert lines[2] == ["extension.target=1024", "2,048", str(tmp_path / "1024")]


def test_a_link_reads_and_writes_what_dvc_yaml_says() -> None:
    stage = {
        "params": [{"resolved.yaml": ["extension.way", "model", "seed"]}, {"overrides.yaml": ["overrides"]}],
        "deps": ["src/ropewalk/rope", "results/base.json"],
        "outs": ["results/model"],
        "metrics": ["results/metrics/name.json"],
    }
    outputs = ("model", "metrics/name.json")
    assert Link.declared("name", stage) == Link("name", ("model",), ("base.json",), outputs)
