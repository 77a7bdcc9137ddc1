"""Publish an exported model to a folder (push.folder), a hub repository (push.hub) or MLflow (push.mlflow)."""

from pathlib import Path

from ropewalk import tracking
from ropewalk.export.load import read_switch
from ropewalk.export.push import push_folder, push_hub
from ropewalk.stage import Stage, run


def push(stage: Stage) -> None:
    config = stage.config.push
    source = Path(config.model)
    read_switch(source)
    if config.folder is None and config.hub is None and config.mlflow is None:
        raise ValueError("nothing to do; give push.folder, push.hub or push.mlflow")
    if config.folder is not None:
        push_folder(source, Path(config.folder))
        print(f"folder: {config.folder}")
    if config.mlflow is not None:
        print(f"MLflow: {tracking.register_model(source, config.mlflow)}")
    if config.hub is not None:
        print(f"hub: {push_hub(source, config.hub, private=config.private)}")


if __name__ == "__main__":
    run("push", push, sections=("push",), whole=False)
