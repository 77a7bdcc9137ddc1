"""Every YAML block of the README and the guides composes, and trains a model at a rate that is usual for its size."""

import re
from pathlib import Path

import pytest
import yaml

from ropewalk.composition import composed
from ropewalk.defaults.facts import Facts, read_facts
from ropewalk.defaults.training import unusual
from tiny_models import tiny_llama
from workspace import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LARGE = Facts(window=4096, parameters=7_000_000_000, layers=32, hidden=4096)
"""The models that the recipes, and the blocks that give learning rates, are for."""
REGISTERED_THERE = {"extending.md"}
"""Pages whose blocks name what the page registers; the page has a test of its own."""
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    if page.name not in REGISTERED_THERE
    for number, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]


@pytest.fixture
def neighbours(scratch: Path) -> Path:
    """The model and the texts that the guides speak of, in place of a folder beside the project."""
    for name in ("my-model", "my-yarn-model"):
        tiny_llama(max_position_embeddings=4096).save_pretrained(scratch / name)
    (scratch / "my-texts").mkdir()
    (scratch / "my-texts" / "a.txt").write_text("a text")
    return scratch


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_overrides_composes_and_trains_as_usual(block: str, neighbours: Path) -> None:
    values = yaml.safe_load(block)
    overrides = values.get("overrides", [])
    # A block in the form of conf/ is given as the overrides of its sections.
    overrides += [
        f"{section}.{key}={_in_hydra(value)}"
        for section, keys in values.items()
        if section != "overrides"
        for key, value in keys.items()
    ]
    assert overrides
    given = [override.replace("../", f"{neighbours}/") for override in overrides]
    if "finetune.before_first" in "".join(given):
        given.append(f"model.path={neighbours / 'my-model'}")
        given += ["extension.target=262144", "extension.search_first.lengths=[131072,262144]"]
    config = composed([*given, "output=out", "work=work"])
    gives_rates = any("learning_rate" in override for override in given)
    assert not list(unusual(config, LARGE if gives_rates else read_facts(config.model)))


@pytest.mark.parametrize("name", ["llama2_7b_2048k", "llama3_8b_128k", "mistral_7b_2048k", "single_gpu"])
def test_a_recipe_trains_as_usual(name: str) -> None:
    assert not list(unusual(composed([f"experiment={name}", "output=out", "work=work"]), LARGE))


def _in_hydra(value: object) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_hydra, value)) + "]"
    return str(value)
