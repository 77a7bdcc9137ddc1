"""A configuration that Hydra composed, as dataclasses: checked as a whole before any work starts."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ropewalk.config import Config
from ropewalk.consistency import check


def register() -> None:
    """Make the schema known to Hydra, so that keys and types are checked while conf/ is composed."""
    ConfigStore.instance().store(name="schema", node=Config)


def checked(config: DictConfig) -> Config:
    """The composed configuration as dataclasses.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a contradiction; names the key.
    """
    try:
        # As plain values, so that a key put in with + meets the schema too.
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(config)))
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from None
    assert isinstance(typed, Config)
    check(typed)
    return typed


def read_overrides(path: str | Path) -> list[str]:
    """The list in overrides.yaml; raises ValueError where there is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    overrides = values.get("overrides") if isinstance(values, dict) else None
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError(f"{path} must hold a list like overrides: ['search=fast'], found {values!r}")
    return overrides


def explain(error: BaseException) -> str:
    """One line for a Hydra or OmegaConf error: the key, what was found, and what is allowed."""
    cause: BaseException | None = error
    message = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"configuration: {group} has no choice {choice}; allowed are {', '.join(error.options)}"
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            message = f"{cause.full_key}: {str(cause).splitlines()[0]}"
            if isinstance(cause, ConfigKeyError | ConfigAttributeError):
                allowed = _fields_at(cause.full_key.split(".")[:-1])
                message = f"unknown key {cause.full_key}; allowed are {', '.join(allowed)}"
            elif isinstance(cause, MissingMandatoryValue):
                message = f"{cause.full_key} must be given"
            break
        cause = cause.__cause__
    return f"configuration: {message}"


def _fields_at(path: list[str]) -> list[str]:
    kind: Any = Config
    for name in path:
        kind = next((item.type for item in fields(kind) if item.name == name), kind)
    return [item.name for item in fields(kind)]


def section(config: Config, *names: str) -> dict[str, Any]:
    """Plain values of the named sections, for records and hashes."""
    whole = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(whole, dict)
    return {name: whole[name] for name in names}
