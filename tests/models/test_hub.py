"""A hub id without a network ends at once with one line, and is read from the hub's cache where that holds it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from published import publishing
from ropewalk.models import hub, source
from ropewalk.models.base import load_model, load_tokenizer, window_before
from ropewalk.models.capability import capability
from ropewalk.models.source import Source
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from workspace import ROOT, environment

NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""
COMMIT = "0" * 40


def window_of(path: str) -> int:
    return window_before(path, start="checkpoint", original_length=None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of a hub at which nothing listens, in a process that has not asked it yet."""

    def forget() -> None:
        hub.why_offline.cache_clear()
        source._hub_config.cache_clear()
        close_session()

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    forget()
    yield tmp_path / "hub"
    forget()


@pytest.fixture
def snapshot(cache: Path) -> Path:
    """owner/name in the cache."""
    folder = cache / "models--owner--name" / "snapshots" / COMMIT
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize("load", [load_model, load_tokenizer, window_of, capability])
@pytest.mark.parametrize(
    ("endpoint", "proxy", "reason"),
    [
        (NOBODY, None, f"{NOBODY} cannot be reached ("),
        ("http://hub.invalid", None, "http://hub.invalid cannot be reached ("),
        ("https://hub.invalid", NOBODY, "https://hub.invalid cannot be reached ("),
        ("", None, "HF_HUB_OFFLINE is set"),
    ],
)
def test_without_a_network_a_hub_id_ends_in_under_a_second(
    cache: Path, monkeypatch: pytest.MonkeyPatch, load: object, endpoint: str, proxy: str | None, reason: str
) -> None:
    assert callable(load)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not endpoint)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError) as raised:
        load("owner/name")
    assert time.monotonic() - began < 1
    message = str(raised.value)
    assert message.startswith(f"model.path owner/name is no folder, and as a hub id it is not in {cache} while ")
    assert reason in message
    assert message.endswith("; give a folder, or fetch the model first")
    assert "\n" not in message


@pytest.mark.parametrize("offline", [False, True])
def test_a_model_in_the_hubs_cache_is_loaded_without_a_network(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    assert window_of("owner/name") == WINDOW
    assert load_model("owner/name").num_parameters() == tiny_llama().num_parameters()
    assert load_tokenizer("owner/name")("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    assert time.monotonic() - began < 5


def test_a_model_without_weights_in_the_hubs_cache_is_told(snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors weights"):
        load_model("owner/name")


def test_a_hub_that_answers_is_asked_for_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with publishing() as published:
        monkeypatch.setattr(constants, "ENDPOINT", published.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{published.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        with pytest.raises(FileNotFoundError) as raised:
            Source.at("owner/name")
        assert hub.why_offline() is None
    assert str(raised.value).startswith("model.path owner/name: ")
    assert "cannot be reached" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compose", "plan", "show", "prepare", "base"])
def test_every_script_says_it_in_one_line(tmp_path: Path, name: str) -> None:
    overrides = ["model.path=owner/name", "model=hf"]
    if name == "compose":
        (tmp_path / "overrides.yaml").write_text(f"overrides: {overrides}\n")
        overrides = []
    done = subprocess.run(
        (sys.executable, ROOT / "pipelines" / f"{name}.py", *overrides),
        cwd=tmp_path,
        env={**environment(ROOT), "HF_ENDPOINT": NOBODY, "HF_HUB_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith(f"{name}: model.path owner/name is no folder")
    assert f"{NOBODY} cannot be reached" in line
