"""Fine-tuning on two devices as a stage: started by the stage itself and by torchrun, tracked and written once."""

import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from ropewalk.files import read_json
from ropewalk.rope import methods
from tiny_models import tiny_base
from tiny_runs import token_store
from workspace import ROOT, copy_project, run, run_script

SMALL = (
    "experiment=smoke", "finetune.first.length=64", "finetune.first.steps=2", "finetune.first.batch_size=4",
    "finetune.second.length=64", "finetune.second.steps=1", "finetune.second.batch_size=4", "finetune.recall_share=0",
    "finetune.precision=32-true", "parallel.devices=2", "output=results", "work=work",
)  # fmt: skip
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:0",
)  # fmt: skip
COMMANDS = {
    "ddp": (sys.executable, "pipelines/finetune_first.py", "parallel=ddp"),
    "fsdp": (*TORCHRUN, "pipelines/finetune_first.py", "parallel=fsdp", "parallel.context=2"),
    "baseline": (sys.executable, "pipelines/finetune_baselines.py", "parallel=ddp", "baselines.methods=[pi]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_a_stage_on_two_devices_writes_and_tracks_once(tmp_path: Path, case: str) -> None:
    project = copy_project(tmp_path)
    results = project / "results"
    token_store(results / "tokens" / "train")
    factors = methods.pi(rotary_dim=32, base=10_000.0, original_length=256, target_length=2048)
    (results / "factors").mkdir()
    (results / "factors" / "first.json").write_text(factors.to_json())
    shutil.copytree(ROOT / "models", project / "models", dirs_exist_ok=True)
    walker = ROOT / "models" / "walker"
    weights = load_file(walker / "model.safetensors")
    sizes = {"original_length": 256, "rotary_dim": 32, "vocab_size": read_json(walker / "config.json")["vocab_size"]}
    base = tiny_base(**sizes, parameters=sum(weight.numel() for weight in weights.values()))
    base.write(results / "base.json")
    finished = run(project, *COMMANDS[case], *SMALL)
    assert finished.returncode == 0, finished.stdout
    (tracked,) = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").search_runs(["1"])
    assert tracked.info.status == "FINISHED"
    if case == "baseline":
        checkpoint = results / "checkpoints" / "baselines" / "pi"
        assert read_json(results / "metrics" / "finetune_baselines.json")["pi"]["steps"] == 1
    else:
        checkpoint = results / "checkpoints" / "finetune_first"
        assert read_json(results / "metrics" / "finetune_first.json")["steps"] == 2
    trained = load_file(checkpoint / "model.safetensors")
    assert {name: weight.shape for name, weight in trained.items()} == {n: w.shape for n, w in weights.items()}
    assert not list((project / "work").glob("*/*"))


@pytest.mark.parametrize("stage", ["finetune_first", "finetune_baselines"])
def test_processes_of_torchrun_need_one_folder(scratch: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match=f"{stage}: output must name one folder for all processes of torchrun"):
        run_script(stage, "experiment=smoke", "parallel=ddp")
