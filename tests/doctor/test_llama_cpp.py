"""What the real llama.cpp, built by ``make llama``, makes of a GGUF file: factors applied, or lost by a converter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama_build
from doctor.conftest import LENGTH, export, yarn
from ropewalk.config import DoctorConfig
from ropewalk.doctor import Diagnosis
from ropewalk.doctor.diagnosis import Verdict
from ropewalk.doctor.examine import examine
from ropewalk.export import export_checkpoint
from ropewalk.export.gguf import export_gguf
from ropewalk.rope import LengthSwitch, RopeScaling, methods, rotary_shape
from tiny_models import WINDOW, tiny_llama, tiny_qwen2
from tiny_tokenizers import byte_level, single_digits
from workspace import ROOT, environment

pytest.importorskip("gguf", reason="the extra gguf is not installed")


def examined(model: Path, reference: Path, runtime: str = "llama_cpp", **options: int) -> Diagnosis:
    config = DoctorConfig(model=str(model), reference=str(reference), runtime=runtime, **options)
    (diagnosis,) = examine(config)
    return diagnosis


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-cpp-python, as it was built, can be imported."""
    variables = llama_build.environment()
    if variables is None:
        pytest.skip(f"llama.cpp is not built in {llama_build.PLACE}; `make llama` builds it")
    monkeypatch.syspath_prepend(variables["PYTHONPATH"].split(os.pathsep)[0])
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", variables["LLAMA_CPP_LIB_PATH"])


@pytest.mark.slow
@pytest.mark.usefixtures("llama")
def test_the_factors_of_an_exported_file_are_applied(exported: Path, tmp_path: Path) -> None:
    export_gguf(exported, tmp_path / "model.gguf")
    diagnosis = examined(tmp_path / "model.gguf", exported)
    assert diagnosis.verdict is Verdict.APPLIED
    assert diagnosis.sentence.startswith("llama_cpp applies the scaling: losses agree to 0.00")


@pytest.mark.slow
@pytest.mark.usefixtures("llama")
def test_a_file_without_the_factors_is_told(exported: Path, tmp_path: Path) -> None:
    """What a converter writes that does not know rope_type longrope: the weights alone."""
    plain = methods.none(rotary_dim=32, base=10_000.0, original_length=256, target_length=LENGTH)
    export_gguf(export(tmp_path / "plain", plain), tmp_path / "model.gguf")
    diagnosis = examined(tmp_path / "model.gguf", exported)
    assert diagnosis.verdict is Verdict.DROPPED
    assert diagnosis.sentence.startswith(
        "llama_cpp drops it: from position 512 on its loss equals that of plain RoPE ("
    )


@pytest.mark.slow
@pytest.mark.usefixtures("llama")
def test_a_file_without_the_attention_factor_is_told(exported: Path, tmp_path: Path) -> None:
    scaling = yarn()
    bare = RopeScaling(scaling.factors, scaling.original_length, scaling.target_length)
    export_gguf(export(tmp_path / "bare", bare), tmp_path / "model.gguf")
    diagnosis = examined(tmp_path / "model.gguf", exported)
    assert diagnosis.verdict is Verdict.ELSE
    assert "the factors without the attention factor" in diagnosis.sentence


@pytest.mark.slow
@pytest.mark.usefixtures("llama")
def test_two_sets_are_chosen_by_the_context(tmp_path: Path) -> None:
    short = RopeScaling((1.0,) * 16, 256, 256)
    folder = export(tmp_path / "model", short, yarn(), short_factor="recovered")
    export_gguf(folder, folder / "model.gguf")
    assert examined(folder, folder).verdict is Verdict.APPLIED


@pytest.mark.slow
@pytest.mark.usefixtures("llama")
def test_a_base_that_stands_for_factors_is_not_taken_for_plain_rope(tmp_path: Path) -> None:
    """llama.cpp applies no factors in Qwen2, for which NTK is written as another base."""
    model = tiny_qwen2(vocab_size=600)
    scaling = methods.ntk(**vars(rotary_shape(model)), target_length=4 * WINDOW)
    folder = tmp_path / "model"
    export_checkpoint(model, byte_level(single_digits()), LengthSwitch(((4 * WINDOW, scaling),)), folder, card="")
    export_gguf(folder, folder / "model.gguf")
    assert examined(folder / "model.gguf", folder).verdict is Verdict.APPLIED


def test_transformers_drops_the_factors_of_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    model = tiny_llama(vocab_size=600)
    scaling = methods.pi(**vars(rotary_shape(model)), target_length=4 * WINDOW)
    folder = tmp_path / "model"
    export_checkpoint(model, byte_level(single_digits()), LengthSwitch(((4 * WINDOW, scaling),)), folder, card="")
    export_gguf(folder, folder / "model.gguf", dtype="float32")
    diagnosis = examined(folder / "model.gguf", folder, runtime="transformers")
    assert diagnosis.verdict is Verdict.DROPPED


@pytest.mark.slow
def test_a_package_that_is_not_installed_is_told(exported: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        (sys.executable, ROOT / "pipelines" / "doctor.py", f"doctor.model={exported}", "doctor.runtime=llama_cpp"),
        cwd=tmp_path,
        env=environment(ROOT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("doctor: doctor.runtime=llama_cpp: llama-cpp-python is not ")
