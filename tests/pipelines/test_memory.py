"""Every stage that runs a model ends in one line that names a setting where memory does not suffice."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ropewalk.models.memory import within_memory
from tiny_benchmarks import small_benchmarks
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from tiny_pipeline import BYTES, FIRST, OVERRIDES, byte_store, evaluate_inputs
from workspace import ROOT, run_script

WALKER = f"model.path={ROOT / 'models' / 'walker'}"
READS = r"lower evaluate\.chunk_tokens, found 16384, or take model\.dtype=bfloat16"
SEARCHES = r"lower search\.batch_tokens, found 16384 .*, or search\.workers, found 1, or take model\.dtype=bfloat16"
FEW = ["search.documents=2", "extension.search_second.documents=2", "search.race.blocks=16"]
DOCTOR = ["doctor.model=yarn", "doctor.length=300"]
STAGES = {
    "base": (r"take model\.dtype=bfloat16", ["extension=long", WALKER]),
    "search_first": (SEARCHES, FEW),
    "finetune_first": (r"\d rows of 256 tokens do not fit; what would help: finetune\.\S+ \(\d+ MiB less\); .*", []),
    "recover": (SEARCHES, FEW),
    "evaluate": (READS, []),
    "export": (READS, []),
    "doctor": (r"lower doctor\.length, found 300", DOCTOR),
}
"""What each stage names, and overrides for so few documents and tokens."""
embedding = torch.nn.functional.embedding


def fail(*arguments: Any, **options: Any) -> Any:
    """Ask for more memory than there can be, with torch's own error; the plan's tensors without storage need none."""
    if any(isinstance(argument, FakeTensor) for argument in arguments):
        return embedding(*arguments, **options)
    return torch.empty(2**60)


@pytest.fixture
def inputs(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that any of the stages reads, in ``results`` and ``yarn`` below the current folder."""
    folder = evaluate_inputs(scratch / "results")
    byte_store(folder / "tokens" / "search", seed=1)
    (folder / "plots").mkdir()
    (folder / "factors" / "second_by_length.json").write_text((folder / "factors" / "recovered.json").read_text())
    (folder / "verdict.json").write_text("{}")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": WINDOW}
    tiny_llama(vocab_size=BYTES, rope_parameters=yarn, max_position_embeddings=FIRST).save_pretrained("yarn")
    byte_tokenizer().save_pretrained("yarn")
    monkeypatch.setattr("ropewalk.tracking.stage_run", lambda *_, **__: nullcontext())
    monkeypatch.setattr("ropewalk.tracking.lightning_logger", lambda: None)
    monkeypatch.setattr("ropewalk.tracking.log_file", lambda *_: None)
    run_script("prompts", *OVERRIDES, f"output={folder}")
    return folder


def stopped(stage: str, *overrides: str) -> str:
    """The line that a stage ends with."""
    with pytest.raises(SystemExit) as raised:
        run_script(stage, *OVERRIDES, "evaluate.cache=null", "model.dtype=float32", *overrides)
    line = raised.value.code
    assert isinstance(line, str)
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_memory_names_a_setting_in_one_line(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    named, overrides = STAGES[stage]
    monkeypatch.setattr(torch.nn.functional, "embedding", fail)
    line = stopped(stage, *overrides)
    assert re.fullmatch(rf"{stage}: out of memory; {named}", line), line


def test_benchmarks_without_memory_name_their_own_batch(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("ropewalk.evaluate.harness", exc_type=ModuleNotFoundError)
    monkeypatch.setattr(harness.BatchedModel, "_model_call", fail)
    questions = small_benchmarks(inputs.parent / "questions")
    line = stopped(
        "evaluate",
        "evaluate.benchmarks.tasks=[truthfulqa_mc1]",
        f"evaluate.benchmarks.path={questions}",
        "rope=longrope",
        "evaluate.documents=1",
    )
    assert line == "evaluate: out of memory; lower evaluate.benchmarks.batch_tokens, found 4096"


def test_a_model_that_does_not_fit_when_it_is_loaded_is_no_broken_checkpoint(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropewalk.models.source.Source.model", fail)
    assert stopped("evaluate") == f"evaluate: out of memory; {READS}".replace("\\", "")
    assert stopped("doctor", *DOCTOR) == "doctor: out of memory; lower doctor.length, found 300"


def test_every_kind_of_allocation_is_told_and_the_closest_advice_stays() -> None:
    def on_gpu() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")

    for allocate in (on_gpu, fail, lambda: np.empty(2**55), lambda: bytearray(2**60)):
        with (
            pytest.raises(MemoryError, match=r"^out of memory; lower this$"),
            within_memory("lower that"),
            within_memory("lower this"),
        ):
            allocate()
