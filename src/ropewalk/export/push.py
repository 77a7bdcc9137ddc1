"""Sending an exported model elsewhere: a local folder, or a hub repository."""

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi

from ropewalk.export.checkpoint import SWITCH_FILE, check_folder, check_space
from ropewalk.files import writing

TOKEN = "HF_TOKEN"
"""Environment variable that the hub's token is read from; it is never written anywhere."""


def check_export(source: Path) -> None:
    """Raise FileNotFoundError unless ``source`` is a folder that the export stage wrote."""
    if not (source / SWITCH_FILE).is_file():
        raise FileNotFoundError(
            f"{source} holds no {SWITCH_FILE}, so it is not an exported model; run `dvc repro export`"
        )


def push_folder(source: Path, target: Path) -> None:
    """Copy an exported model to ``target``, whole or not at all; an earlier export there is replaced.

    Raises:
        FileNotFoundError: ``source`` is not an exported model.
        ValueError: ``target`` holds something else, or lies in ``source``.
        OSError: the disk is full, or too full to begin.
    """
    check_export(source)
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies in {source}; give a folder outside of it")
    check_folder(target)
    check_space(target, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    with writing(target) as aside:
        shutil.copytree(source, aside)


def push_hub(source: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported model as one commit to ``repository`` (owner/name), made if it is not there.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: ``source`` is not an exported model.
        ValueError: there is no token, or the hub refuses.
    """
    check_export(source)
    token = os.environ.get(TOKEN)
    if not token:
        raise ValueError(f"a push to the hub needs a token with write access in the environment variable {TOKEN}")
    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=source, commit_message="Extended with Ropewalk", ignore_patterns=[".*"]
        )
    except Exception as error:  # the HTTP library below has errors of its own, and changes from version to version
        raise ValueError(f"the hub took nothing for {repository}: {' '.join(str(error).split())}") from None
    return str(commit.commit_url)
