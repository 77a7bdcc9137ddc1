"""An exported model arrives whole in a folder and in MLflow's registry, and nowhere without being asked properly."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk import load_extended
from ropewalk.export import export_checkpoint
from ropewalk.export.push import push_folder, push_hub
from tiny_models import tiny_llama
from workspace import run_script

from .conftest import switch_for

SMALL_DISK = "64k"


@pytest.fixture
def exported(tokenizer: Any, tmp_path: Path) -> Path:
    model = tiny_llama(vocab_size=300, bos_token_id=256, eos_token_id=257, pad_token_id=257)
    export_checkpoint(model, tokenizer, switch_for(model, n_hat=2), tmp_path / "model", card="# card\n")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_gets_every_file_and_replaces_an_earlier_push_only(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "model"
    push_folder(exported, target)
    assert contents(target) == contents(exported)
    load_extended(target)
    (exported / "README.md").write_text("# another card\n")
    push_folder(exported, target)
    assert contents(target) == contents(exported)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no earlier export"):
        push_folder(exported, tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"chapter.txt": b"years of work"}
    with pytest.raises(ValueError, match="give a folder outside of it"):
        push_folder(exported, exported / "copy")


def test_a_full_disk_is_told_before_anything_is_copied(exported: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"needs 0\.\d MiB and its disk has 0\.1 MiB left"):
        push_folder(exported, small_disk / "model")
    assert not list(small_disk.iterdir())


def test_what_is_not_an_export_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    for push in (lambda: push_folder(tmp_path, tmp_path / "x"), lambda: push_hub(tmp_path, "owner/name")):
        with pytest.raises(FileNotFoundError, match="not an exported model"):
            push()


def test_the_hub_is_not_asked_without_a_token(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="needs a token with write access in the environment variable HF_TOKEN"):
        push_hub(exported, "owner/name")


def test_the_token_is_not_in_the_message_when_no_hub_answers(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    # A port of this machine where nothing listens.
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="the hub took nothing for owner/name") as caught:
        push_hub(exported, "owner/name")
    assert "hf_a_secret" not in str(caught.value)


def test_the_registrys_model_loads_back_and_predicts(
    exported: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    run_script("push", f"push.model={exported}", "push.mlflow=long-llama", f"push.folder={scratch}/copy")
    assert "MLflow: models:/long-llama/1" in capsys.readouterr().out
    assert contents(scratch / "copy") == contents(exported)
    mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
    loaded = mlflow.transformers.load_model("models:/long-llama/1", return_type="components")
    assert loaded["model"].config.rope_parameters["rope_type"] == "longrope"
    text = mlflow.pyfunc.load_model("models:/long-llama/1").predict(["def f(x):"], params={"max_new_tokens": 4})
    assert isinstance(text[0], str)
    assert text[0].startswith("def f(x):")


def test_a_push_to_nowhere_is_refused(exported: Path, scratch: Path) -> None:
    with pytest.raises(SystemExit, match=r"give push\.folder, push\.hub or push\.mlflow"):
        run_script("push", f"push.model={exported}")
