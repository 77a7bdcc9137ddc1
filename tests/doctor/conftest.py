"""The walker exported under YaRN, which its weights feel at once where it is dropped."""

from pathlib import Path

import pytest

from ropewalk.export import export_checkpoint
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import LengthSwitch, RopeScaling, methods, rotary_shape
from workspace import ROOT

WALKER = str(ROOT / "models" / "walker")
LENGTH = 1024


def yarn(length: int = LENGTH) -> RopeScaling:
    return methods.yarn(rotary_dim=32, base=10_000.0, original_length=256, target_length=length)


def export(folder: Path, *entries: RopeScaling, **options: str) -> Path:
    model = load_model(WALKER)
    assert rotary_shape(model).rotary_dim == 32
    switch = LengthSwitch(tuple((scaling.target_length, scaling) for scaling in entries))
    export_checkpoint(model, load_tokenizer(WALKER), switch, folder, card="", **options)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("doctor") / "model", yarn())
