"""The whole pipeline from a checkpoint that came with a scaling: the walker under YaRN, stated to read 512 tokens."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from ropewalk import load_extended
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.files import read_json, read_table
from ropewalk.models.factors import FactorsByLength
from ropewalk.rope import RopeScaling, methods
from workspace import ROOT, run_script, write_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STAGES = (
    "prepare base prompts search_first finetune_first finetune_second search_second recover evaluate export report"
).split()
OVERRIDES = (
    "experiment=smoke",
    "model=hf",
    "model.path=yarn",
    "corpus=text",
    "corpus.path=texts",
    "corpus.search_share=0.3",
    "corpus.test_share=0.3",
    "corpus.min_long_documents=2",
    "corpus.long_tokens=2048",
    "extension.target=1024",
    "extension.second_target=2048",
    "extension.search_first.lengths=[1024]",
    "extension.search_second.lengths=[2048]",
    "extension.recover.lengths=[512]",
    "finetune.first.length=512",
    "finetune.second.length=1024",
    "evaluate.lengths=[512,1024,2048]",
    "evaluate.base_lengths=[512,1024]",
    "evaluate.passkey_lengths=[512]",
)
UNTRAINED = (
    "corpus.search_share=0.3",
    "corpus.test_share=0.3",
    "search=fast",
    "search.gradient_steps=2",
    "search.trials=6",
    "search.documents=2",
    "evaluate.documents=2",
    "evaluate.long_documents=2",
    "evaluate.cache=null",
    "rope.methods=[none,yarn,longrope]",
)


@pytest.fixture
def project(scratch: Path) -> Path:
    """The current folder, with the checkpoint and its texts."""
    shutil.copytree(ROOT / "models" / "walker", scratch / "yarn")
    file = scratch / "yarn" / "config.json"
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 256}
    file.write_text(json.dumps({**read_json(file), "rope_parameters": rope, "max_position_embeddings": 512}))
    (scratch / "texts").mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for source in sorted(library.glob("*.py"), key=lambda path: -path.stat().st_size)[:30]:
        (scratch / "texts" / f"{source.stem}.txt").write_text(source.read_text(encoding="utf-8")[:30_000])
    return scratch


def test_the_pipeline_starts_from_the_checkpoints_own_scaling(project: Path) -> None:
    write_overrides(project, *OVERRIDES)
    run_script("compose")
    for stage in STAGES:
        run_script(stage, "-cp", str(project), "-cn", "resolved")

    results = project / "results"
    base = read_json(results / "base.json")
    assert (base["original_length"], base["window"]) == (256, 512)
    start = methods.yarn(rotary_dim=32, base=10_000.0, original_length=256, target_length=512)
    first = RopeScaling.from_json((results / "factors" / "first.json").read_text())
    assert (first.original_length, first.target_length) == (256, 1024)
    assert all(factor >= of_own - 1e-9 for factor, of_own in zip(first.factors, start.factors, strict=True))
    assert max(first.factors) <= max(start.factors) * 1.25 * 2
    rows = read_table(results / "plots" / "perplexity.csv")
    at_window = [row for row in rows if (row["model"], row["length"]) == ("base", 512)]
    assert {row["method"] for row in at_window} >= {"none", "pi", "yarn"}
    assert [row["length"] for row in rows if row["model"] == "control"] == [512]
    card = (results / "model" / "README.md").read_text()
    assert "context extended from 512 to 2,048 tokens" in card
    assert "came with a scaling from 256 to 512 tokens" in card
    assert load_extended(results / "model").config.max_position_embeddings == 2048
    assert (results / "report.html").is_file()


def test_without_training_the_checkpoints_own_scaling_stays_up_to_its_window(project: Path) -> None:
    passkeys = ("evaluate.passkey_lengths=[512]", "evaluate.passkey_trials=2", "evaluate.passkey_depths=2")
    run_script("extend", "model.path=yarn", "corpus.path=texts", "extension.target=1024", *UNTRAINED, *passkeys)
    (results,) = (project / "outputs" / "extend").glob("yarn-1024-*")
    start = methods.yarn(rotary_dim=32, base=10_000.0, original_length=256, target_length=512)
    switch = FactorsByLength.read(results / "factors" / "recovered.json").switch
    assert switch.lengths == (512, 1024)
    short = switch.for_length(512)
    assert (short.original_length, short.target_length) == (256, 512)
    assert short.factors == pytest.approx(start.factors, rel=1e-5)
    assert short.attention_factor == pytest.approx(start.attention_factor, rel=1e-5)
    assert (switch.longest.original_length, switch.longest.target_length) == (256, 1024)
    perplexity = ResultTable.read(results / "plots" / "perplexity.csv").where(model="base", length=512)
    ours, plain = (perplexity.best_perplexity(method=method, length=512) for method in ("ours", "none"))
    assert ours == pytest.approx(plain, rel=1e-4)
    card = (results / "model" / "README.md").read_text()
    assert "context extended from 512 to 1,024 tokens" in card
    assert "No weight was changed" in card
    assert load_extended(results / "model").config.max_position_embeddings == 1024
