"""The package that docs/extending.md builds adds one entry of each kind, and everything knows them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from workspace import ROOT, environment

PAGE = (ROOT / "docs" / "extending.md").read_text()
COMPOSE = """
import json, sys
from ropewalk.composition import composed

config = composed([*json.loads(sys.argv[1]), "output=out"])
assert "torch" not in sys.modules, "the configuration is checked without waiting for torch"
"""
USE = """
from pathlib import Path

from ropewalk.composition import composed
from ropewalk.config import RaceConfig, SearchConfig
from ropewalk.corpus.sources import find_shards
from ropewalk.evaluate.baselines import variants
from ropewalk.evaluate.benchmarks import Questions
from ropewalk.evaluate.needles import needle_prompts
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.summary import summary
from ropewalk.report.style import style
from ropewalk.rope import RotaryShape
from tiny_models import byte_tokenizer
from tiny_runs import SEARCH, search
from dataclasses import replace

best_cases = variants("log_ramp", RotaryShape(16, 1e4, 64), length=256, target=256)
assert {case.label: case.scaling.factors[-1] for case in best_cases} == {"to s": 4.0, "to the root of s": 2.0}
assert style("log_ramp") == ("log ramp", "#8c564b", "-", "p")
row = {"model": "base", "method": "log_ramp", "variant": "to s", "length": 256, "perplexity": 5.0, "documents": 3,
       "tokens": 765, "document_set": "all", "protocol": "one pass"}
table = summary(ResultTable.from_rows([row]), ResultTable.from_rows([]), [], [])
assert [line.split() for line in table.splitlines() if line.startswith("log ramp")][0] == ["log", "ramp", "5.000"]

(prompt,) = needle_prompts(byte_tokenizer(), "door", length=200, trials=1, depths=1, seed=0).prompts
assert f"The door of the old house is {prompt.answers[0]}." in byte_tokenizer().decode(prompt.ids)

texts = Path("texts")
texts.mkdir()
(texts / "a.txt").write_text("one\\n\\ntwo\\n\\nthree")
config = composed(["corpus=text", "corpus.name=paragraphs", "corpus.path=texts", "output=out"])
(shard,) = find_shards(config.corpus, folder=Path("."), downloads=Path("."))
assert [document.text for _, document in shard.rows(first=2)] == ["two", "three"]

assert Questions("piqa").examples == 0

result, _ = search(Path("search"), config=replace(SEARCH, sampler="gaussian_process", gradient_steps=0, trials=13))
assert len([row for row in result.rows if row["phase"] == "evolution"]) == 13
assert result.loss == min(row["loss"] for row in result.rows)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page, as pip would leave it in a folder of sys.path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_ropewalk.py").write_text("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)))
    (declared,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    groups = tomllib.loads(declared)["project"]["entry-points"]
    lines = [
        line for group, names in groups.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))
    ]
    metadata = folder / "my_ropewalk-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-ropewalk\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(package: Path, folder: Path, code: str, *arguments: str) -> None:
    variables = environment(ROOT)
    variables["PYTHONPATH"] = f"{package}:{ROOT / 'src'}:{ROOT / 'tests'}"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_that_derives_from_the_entries_knows_them(package: Path, scratch: Path) -> None:
    run(package, scratch, USE)


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
def test_the_configuration_takes_the_new_names(package: Path, scratch: Path, block: str) -> None:
    run(package, scratch, COMPOSE, json.dumps(yaml.safe_load(block)["overrides"]))
