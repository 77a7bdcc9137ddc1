"""Publishing an exported model to a local folder or a hub repository."""

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi

from ropewalk.export.checkpoint import check_folder, check_space
from ropewalk.export.load import read_switch
from ropewalk.files import writing
from ropewalk.models.reasons import reason

TOKEN = "HF_TOKEN"
"""Environment variable from which the hub's token is read; the token is never written anywhere."""


def push_folder(source: Path, target: Path) -> None:
    """Copy an exported model to ``target``, whole or not at all; an earlier export there is replaced.

    Raises:
        FileNotFoundError: ``source`` is not an exported model.
        ValueError: ``target`` holds something other than an export, or lies in ``source``.
        OSError: the disk has too little space.
    """
    read_switch(source)
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies in {source}; give a folder outside of it")
    check_folder(target)
    check_space(target, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    with writing(target) as aside:
        shutil.copytree(source, aside)


def push_hub(source: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported model as one commit to ``repository`` (owner/name), which is created if need be.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: ``source`` is not an exported model.
        ValueError: there is no token, or the hub refuses.
    """
    read_switch(source)
    token = os.environ.get(TOKEN)
    if not token:
        raise ValueError(f"a push to the hub needs a token with write access in the environment variable {TOKEN}")
    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=source, commit_message="Extended with Ropewalk", ignore_patterns=[".*"]
        )
    except Exception as error:  # those of the HTTP library, which differ between versions
        raise ValueError(f"the hub took nothing for {repository}: {reason(error)}") from None
    return str(commit.commit_url)
