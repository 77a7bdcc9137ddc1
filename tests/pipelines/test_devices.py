"""Fine-tuning on two devices as a stage: started by the stage itself and by torchrun, tracked and written once."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from ropewalk.files import read_json
from ropewalk.rope import methods
from tiny_runs import token_store
from workspace import ROOT, copy_project, run, run_script

SMALL = (
    "experiment=smoke", "finetune.first.length=64", "finetune.first.steps=2", "finetune.first.rows=4",
    "finetune.recall_share=0", "finetune.precision=32-true", "parallel.devices=2", "output=results", "work=work",
)  # fmt: skip
COMMANDS = {
    "ddp": (sys.executable, "pipelines/finetune_first.py", "parallel=ddp"),
    "fsdp": (
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "pipelines/finetune_first.py", "parallel=fsdp", "parallel.context=2",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", COMMANDS)
def test_a_stage_on_two_devices_writes_and_tracks_once(tmp_path: Path, strategy: str) -> None:
    project = copy_project(tmp_path)
    token_store(project / "results" / "tokens" / "train")
    factors = methods.pi(rotary_dim=32, base=10_000.0, original_length=256, target_length=2048)
    (project / "results" / "factors").mkdir()
    (project / "results" / "factors" / "first.json").write_text(factors.to_json())
    shutil.copytree(ROOT / "models", project / "models", dirs_exist_ok=True)
    base = {"path": "models/walker", "original_length": 256, "rotary_dim": 32, "base": 10_000.0}
    (project / "results" / "base.json").write_text(json.dumps(base))
    finished = run(project, *COMMANDS[strategy], *SMALL)
    assert finished.returncode == 0, finished.stdout
    (own,) = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").search_runs(["1"])
    assert own.info.status == "FINISHED"
    assert read_json(project / "results" / "metrics" / "finetune_first.json")["steps"] == 2
    weights = load_file(project / "results" / "checkpoints" / "finetune_first" / "model.safetensors")
    own_weights = load_file(ROOT / "models" / "walker" / "model.safetensors")
    assert {name: weight.shape for name, weight in weights.items()} == {n: w.shape for n, w in own_weights.items()}
    assert not list((project / "work").glob("*/*"))


def test_processes_of_torchrun_need_one_folder(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="finetune_first: output must name one folder for all processes of torchrun"):
        run_script("finetune_first", "experiment=smoke", "parallel=ddp")
