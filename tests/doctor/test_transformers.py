"""What plain transformers makes of a scaling: applied, dropped by a converter, or set too late to count."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from doctor.conftest import LENGTH, WALKER, export, yarn
from ropewalk.config import DoctorConfig
from ropewalk.doctor import Diagnosis, diagnose_model
from ropewalk.doctor.diagnosis import Verdict
from ropewalk.doctor.examine import examine, gguf_file
from ropewalk.doctor.reference import Reference
from ropewalk.doctor.text import text_ids
from ropewalk.models.base import load_tokenizer
from tiny_models import WINDOW, byte_tokenizer, tiny_llama


def examined(path: Path, **options: Any) -> Diagnosis:
    (diagnosis,) = examine(DoctorConfig(model=str(path), runtime="transformers", **options))
    return diagnosis


def with_config(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with keys of config.json changed, or left out where the value is None."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return copy


def test_an_exported_folder_is_read_with_its_scaling(exported: Path) -> None:
    diagnosis = examined(exported)
    assert diagnosis.verdict is Verdict.APPLIED
    assert diagnosis.sentence.startswith("transformers applies the scaling: losses agree to ")
    assert diagnosis.sentence.endswith(" nats up to 1,024 tokens")
    assert [(part.first, part.last) for part in diagnosis.bins] == [(1, 255), (256, 511), (512, 1023)]
    assert diagnosis.bins[-1].apart > 1


def test_a_config_without_the_scaling_is_told_by_the_file_beside_it(exported: Path, tmp_path: Path) -> None:
    """What converters and older libraries write: everything but rope_parameters."""
    folder = with_config(exported, tmp_path / "model", rope_parameters=None, rope_scaling=None)
    diagnosis = examined(folder)
    assert diagnosis.verdict is Verdict.DROPPED
    first = max(diagnosis.bins, key=lambda part: part.apart)
    assert diagnosis.sentence == (
        f"transformers drops it: from position {first.first:,} on its loss equals that of plain RoPE "
        f"({first.runtime:.2f} for {first.scaled:.2f})"
    )
    assert (first.first, first.runtime > first.scaled + 1) == (512, True)


def test_a_config_without_the_scaling_is_told_by_the_checkpoint_that_it_was_made_from(
    exported: Path, tmp_path: Path
) -> None:
    folder = with_config(exported, tmp_path / "model", rope_parameters=None, rope_scaling=None)
    (folder / "ropewalk.json").unlink()
    with pytest.raises(ValueError, match=r"states no scaling .*; where a converter dropped it, give doctor\.reference"):
        examined(folder)
    assert examined(folder, reference=str(exported)).verdict is Verdict.DROPPED


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaling_that_is_set_after_loading_does_nothing(exported: Path, key: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(WALKER).eval()
    scaling = json.loads((exported / "config.json").read_text())["rope_parameters"]
    setattr(model.config, key, scaling)
    reference = Reference.read(str(exported), length=None)
    ids = text_ids(load_tokenizer(WALKER), length=LENGTH)
    assert diagnose_model(model, ids, reference).verdict is Verdict.DROPPED
    early = AutoModelForCausalLM.from_pretrained(WALKER, rope_parameters=scaling).eval()
    assert diagnose_model(early, ids, reference).verdict is Verdict.APPLIED


def test_the_factors_without_the_attention_factor_are_told(exported: Path, tmp_path: Path) -> None:
    section = json.loads((exported / "config.json").read_text())["rope_parameters"]
    folder = with_config(exported, tmp_path / "model", rope_parameters=section | {"attention_factor": 1.0})
    diagnosis = examined(folder)
    assert diagnosis.verdict is Verdict.ELSE
    assert diagnosis.verdict.exit_code == 1
    assert diagnosis.sentence.startswith(
        "transformers applies the factors without the attention factor: its loss first differs at position "
    )


def test_another_scaling_is_told_with_the_first_position_that_differs(exported: Path, tmp_path: Path) -> None:
    section = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    diagnosis = examined(with_config(exported, tmp_path / "model", rope_parameters=section))
    assert diagnosis.verdict is Verdict.ELSE
    assert "neither the scaling nor plain RoPE: its loss first differs at position " in diagnosis.sentence
    assert 1 <= diagnosis.first_difference < 64


def test_n_hat_which_transformers_has_no_field_for_is_explained(tmp_path: Path) -> None:
    diagnosis = examined(export(tmp_path / "model", replace(yarn(), n_hat=64)))
    assert diagnosis.verdict is Verdict.APPLIED
    assert "applies the scaling, also at the first 64 positions (n_hat), which only load_extended" in diagnosis.sentence


def test_one_set_of_factors_where_ours_changes_with_the_length_is_explained(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", yarn(512), yarn(2048))
    diagnosis = examined(folder, length=512)
    assert diagnosis.verdict is Verdict.APPLIED
    assert "that for 2,048 tokens at every length, where load_extended chooses by length" in diagnosis.sentence


def test_two_sets_of_factors_are_those_of_the_length(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", replace(yarn(512), target_length=256), yarn(2048), short_factor="recovered")
    assert examined(folder, length=1024).verdict is Verdict.APPLIED


@pytest.mark.parametrize(
    ("section", "stated"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "dynamic", "factor": 4.0}, 1024),
        ({"rope_type": "linear", "factor": 4.0}, 1024),
    ],
)
def test_a_published_checkpoint_is_judged_by_its_config(tmp_path: Path, section: dict[str, Any], stated: int) -> None:
    window = 256 if section["rope_type"] == "dynamic" else stated
    changes = {"rope_parameters": section | {"rope_theta": 10_000.0}, "max_position_embeddings": window}
    folder = with_config(Path(WALKER), tmp_path / "model", **changes)
    diagnosis = examined(folder)
    assert diagnosis.verdict is Verdict.APPLIED
    assert len(diagnosis.losses.runtime) == stated - 1
    plain = with_config(Path(WALKER), tmp_path / "plain")
    assert examined(plain, reference=str(folder)).verdict is Verdict.DROPPED


def test_losses_that_are_not_numbers_are_something_else(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    model.model.norm.weight.data.fill_(math.nan)
    reference = Reference.read(str(exported), length=300)
    assert diagnose_model(model, text_ids(load_tokenizer(WALKER), length=300), reference).verdict is Verdict.UNTOLD


def test_a_model_on_which_the_scaling_changes_nothing_does_not_tell(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=258, initializer_range=1e-3)
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    model.config.max_position_embeddings = 2 * WINDOW
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    diagnosis = examined(tmp_path)
    assert diagnosis.verdict is Verdict.UNTOLD
    assert diagnosis.verdict.exit_code == 2
    assert diagnosis.sentence.startswith("it cannot be told whether transformers applies the scaling: on 128 tokens")
    assert diagnosis.sentence.endswith("; give a text of more than 128 tokens")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere"}, r"^doctor\.model nowhere is not there"),
        ({"reference": "nowhere"}, r"^doctor\.reference nowhere is not there"),
        ({"text": "nowhere.txt"}, r"doctor\.text nowhere\.txt is not a file; give a \.txt file"),
        (
            {"text": "short.txt"},
            r"doctor\.text short\.txt has 107 tokens, which the window of 256 holds without scaling; give",
        ),
        ({"text": "short.txt", "length": 500}, r"has 107 tokens, and doctor\.length asks for 500; give a longer"),
        ({"reference": "other"}, r"doctor\.reference other is of another model: found 8 rescale factors"),
    ],
)
def test_bad_input_is_told_in_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short a text " * 15)
    yarn_section = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
    tiny_llama(rope_parameters=yarn_section | {"original_max_position_embeddings": WINDOW}).save_pretrained("other")
    load_tokenizer(WALKER).save_pretrained("other")
    config = DoctorConfig(**{"model": str(exported), "runtime": "transformers", **options})
    with pytest.raises((ValueError, OSError), match=message) as raised:
        examine(config)
    assert "\n" not in str(raised.value)


def test_the_gguf_file_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no GGUF file, export with export\.gguf=float16 or set doctor\.runtime"
    ):
        gguf_file(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").touch()
        assert gguf_file(str(tmp_path / f"{name}.gguf")) == tmp_path / f"{name}.gguf"
        if name == "a":
            assert gguf_file(str(tmp_path)) == tmp_path / "a.gguf"
    with pytest.raises(FileNotFoundError, match="has 2 GGUF files, give one of them"):
        gguf_file(str(tmp_path))
