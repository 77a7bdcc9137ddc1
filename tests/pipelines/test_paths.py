"""A path with blanks, an equals sign or an apostrophe is quoted once, and reaches every stage."""

import json
from pathlib import Path

import pytest

from ropewalk.models.base import BaseModel
from tiny_models import byte_tokenizer, tiny_llama
from workspace import run_script, write_overrides

NAME = "step=3 (v2), o'hara"
QUOTED = "model.path='step=3 (v2), o\\'hara'"


@pytest.fixture
def model(scratch: Path) -> Path:
    tiny_llama(vocab_size=258).save_pretrained(scratch / NAME)
    byte_tokenizer().save_pretrained(scratch / NAME)
    texts = scratch / "my texts=x"
    texts.mkdir()
    (texts / "a.txt").write_text("text " * 1000)
    return scratch / NAME


def test_it_reaches_a_stage_by_overrides_yaml_and_by_the_resolved_configuration(model: Path, scratch: Path) -> None:
    write_overrides(scratch, QUOTED, "corpus.path='my texts=x'")
    run_script("compose")
    run_script("base", "-cp", str(scratch), "-cn", "resolved")
    assert BaseModel.read(scratch / "results" / "base.json").path == NAME


def test_it_reaches_a_script_by_its_command_line(model: Path, scratch: Path) -> None:
    run_script("base", QUOTED, "output='out=1'")
    assert json.loads((scratch / "out=1" / "base.json").read_text())["path"] == NAME


def test_without_quotes_it_is_refused_with_the_quoted_one(model: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        run_script("base", f"model.path={NAME}")
    assert f"quote its value: {QUOTED} (on a command line" in str(raised.value)
