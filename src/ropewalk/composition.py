"""Composes conf/ and overrides into the dataclasses of the schema, checked as a whole; every mistake is one line."""

import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, reduce
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ropewalk.config import Config
from ropewalk.config.keys import check_keys, require
from ropewalk.consistency import check, check_show
from ropewalk.defaults.follow import RULES, follow

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the project, which holds conf/."""
_MOST_TRIED = 32
"""Number of values of a sweep that are tried to find out why it fails."""


@cache
def register() -> None:
    """Make the schema known to Hydra, so that keys and types are checked while conf/ is composed."""
    ConfigStore.instance().store(name="schema", node=schema())


def schema() -> DictConfig:
    """The schema, in which the keys that follow from the model and the device lack values until they are given."""
    node = OmegaConf.structured(Config)
    for key in RULES:
        OmegaConf.update(node, key, MISSING)
    assert isinstance(node, DictConfig)
    return node


def with_demo(overrides: Sequence[str]) -> list[str]:
    """``overrides`` as Hydra takes them, preceded by ``experiment=demo`` where they name no model and no experiment."""
    keys = {override.partition("=")[0].lstrip("+~") for override in overrides}
    named = keys & {"experiment", "model.path"} or "model=hf" in overrides
    return [*([] if named else ["experiment=demo"]), *overrides]


def project_overrides(given: Sequence[str]) -> list[str]:
    """The overrides of a script's command line behind those of overrides.yaml in the working folder, if there is one.

    Raises:
        ValueError: overrides.yaml does not hold a list of overrides.
    """
    path = Path("overrides.yaml")
    return with_demo([*(read_overrides(path) if path.is_file() else ()), *given])


def composed(overrides: Sequence[str], *, sections: Sequence[str] | None = None) -> Config:
    """The configuration of conf/ under Hydra ``overrides``, with the demo where they name no model.

    Args:
        sections: the only ones that are read, as for `checked`.

    Raises:
        ValueError: a wrong override, a contradiction, or a key left out; names it and what is allowed.
    """
    overrides = with_demo(overrides)
    try:
        config = _compose(overrides)
    except Exception as error:
        raise ValueError(explain(error, overrides)) from error
    return checked(config, sections=sections)


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _conf():
        return compose("config", list(overrides))


def _conf() -> initialize_config_dir:
    """A context in which Hydra reads conf/."""
    register()
    return initialize_config_dir(str(ROOT / "conf"), version_base="1.3")


def _choices(group: str) -> str:
    """Names of the choices of a group of conf/ or of Hydra; empty where there is no such group."""
    with _conf():
        return ", ".join(GlobalHydra.instance().config_loader().get_group_options(group))


def checked(config: DictConfig, *, sections: Sequence[str] | None = None) -> Config:
    """The composed configuration as dataclasses, in which what was not given follows from the model and the device.

    Args:
        sections: the only ones that are read; the others may lack values, and are not compared with one another.

    Raises:
        ValueError: an unknown key, a value of the wrong type, a contradiction, or a key left out; names the key and
            what is allowed. Also where the model that a value follows from cannot be read.
        FileNotFoundError: that model is not there.
    """
    try:
        # As plain values, so that keys put in with + and the targets of interpolations meet the schema too.
        values = OmegaConf.to_container(config, resolve=True)
        _check_shape(Config, values, "")
        values = OmegaConf.to_container(OmegaConf.merge(schema(), values))
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from None
    typed = _built(Config, values)
    assert isinstance(typed, Config)
    check_keys(typed)
    follow(typed, sections=sections)
    if sections is None:
        check(typed)
    else:
        check_show(typed)
    return typed


def _built(kind: Any, value: Any) -> Any:
    """Plain values as the dataclasses of the schema; unlike `OmegaConf.to_object`, with missing values."""
    if is_dataclass(kind):
        assert isinstance(kind, type)
        kinds = {item.name: item.type for item in fields(kind)}
        return kind(**{name: _built(kinds[name], inner) for name, inner in value.items()})
    if isinstance(value, list):
        return [_built(_member(kind, place), inner) for place, inner in enumerate(value)]
    if isinstance(value, dict):
        return {name: _built(_member(kind, name), inner) for name, inner in value.items()}
    return value


def _check_shape(kind: Any, value: Any, key: str) -> None:
    """Raise ValueError where a key is unknown or left out, or a value is not of the kind that the schema has there."""
    if value == "???":
        require(key in RULES, f"{key} must be given")
        return
    if is_dataclass(kind):
        require(isinstance(value, dict), f"{key} must be a section with the keys {_keys(kind)}, found {value}")
    elif kind is not Any and value is not None:
        container = get_origin(kind)
        name = {list: "list", dict: "mapping", None: "single value"}[container]
        fits = isinstance(value, container) if container else not isinstance(value, list | dict)
        require(fits, f"{key} must be a {name}, found {value}")
    for inner_key, name, inner in _items(value, key):
        inner_kind = _member(kind, name)
        if inner_kind is None:
            raise ValueError(f"configuration: unknown key {inner_key}; allowed are {_keys(kind)}")
        _check_shape(inner_kind, inner, inner_key)


def _keys(kind: Any) -> str:
    return ", ".join(item.name for item in fields(kind))


def _items(value: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, name and value of everything that a mapping or list of plain values holds."""
    if isinstance(value, dict):
        yield from ((f"{key}.{name}" if key else str(name), name, inner) for name, inner in value.items())
    elif isinstance(value, list):
        yield from ((f"{key}[{place}]", place, inner) for place, inner in enumerate(value))


def _member(kind: Any, name: Any) -> Any:
    """The schema's type of the value under ``name`` in a value of type ``kind``; None where there is no such key."""
    if is_dataclass(kind):
        kind = {item.name: item.type for item in fields(kind)}.get(name)
        # Of an optional key, the type that is not None.
        return get_args(kind)[0] if isinstance(kind, UnionType) else kind
    return get_args(kind)[-1] if get_origin(kind) else Any


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


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """One line for an error of Hydra or OmegaConf: the key or override, what was found, and what is allowed.

    Args:
        overrides: those that were being applied, which may sweep. Where the error names none, the override at which
            composing fails is named, or those of Hydra's own configuration.
    """
    keyed = _keyed(error)
    message = keyed or " ".join(str(error).partition("full_key: ")[0].split()) or _failing_line(error)
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'(?: 1\.| requires)", message)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        message = f"{group} has no choice {name}; allowed are {', '.join(error.options)}"
    elif isinstance(error, OverrideParseException):
        readable = re.match(r"[+~]*[A-Za-z_][\w./@:-]*=", error.override)
        advice = f"quote its value: {_quoted(error.override)}" if readable else "a key is names with dots between them"
        message = f"{error.override} is not in Hydra's grammar; {advice}"
    elif several:
        message = (
            f"{several[1]} holds several values, which only a sweep (-m) takes; put the values of a list into "
            f"brackets, and quote text: {_quoted(several[1])}"
        )
    elif not keyed and (override := culprit(overrides)):
        key = override.lstrip("+~").partition("=")[0]
        message = message if key and key in message else f"{override} cannot be applied: {message}"
        if choices := _choices(key.replace(".", "/")):
            message += f"; {key.replace('.', '/')} takes one of {choices}"
    return f"configuration: {' '.join(message.splitlines())}"


def _keyed(error: BaseException) -> str | None:
    """The message of the OmegaConf error behind ``error`` that knows the key, beginning with it."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OmegaConfBaseException) and cause.full_key):
        cause = cause.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return None
    key = str(cause.full_key)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} must be given"
    if not isinstance(cause, ConfigKeyError | ConfigAttributeError):
        group = key.replace(".", "/")
        choices = _choices(group) if "not a subclass" in str(cause) else ""
        return f"{key}: {str(cause).splitlines()[0]}{f'; {group} takes one of {choices}' if choices else ''}"
    # Names of keys, without the places in lists.
    *above, _ = re.findall(r"[^.\[\]]+", key)
    kind = reduce(_member, above, Config)
    if is_dataclass(kind):
        return f"unknown key {key}; allowed are {_keys(kind)}"
    return f"unknown key {key}; a key is added to a mapping by an override that begins with +"


def _quoted(override: str) -> str:
    """The override with its value as a quoted string of Hydra's grammar."""
    key, _, value = override.partition("=")
    escaped = value.strip("\"'").replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}' (on a command line, with double quotes around all of it)"


def _failing_line(error: BaseException) -> str:
    """The line of code that raised an error without a message; of an assertion it says what is allowed."""
    return str(traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__)


def culprit(overrides: Sequence[str]) -> str | None:
    """The override at which composing fails when they are applied one after another, with each value of a sweep.

    Where it does not fail, the overrides of Hydra's own configuration, which Hydra reads later; None if there are none.
    """
    applied: list[str] = []
    for override in overrides:
        try:
            values = _sweep_values(override) or [override]
            for value in values:
                _compose([*applied, value])
        except Exception:
            return override
        applied.append(values[0])
    suspects = [text for text in overrides if re.match(r"\+*hydra[./]", text)]
    # Choices of groups are found while composing, so a key is the likelier reason.
    return " ".join([text for text in suspects if "hydra." in text] or suspects) or None


def check_sweep(overrides: Sequence[str]) -> None:
    """Raise HydraException where an override of a sweep (-m) holds no value, so that no job would run."""
    for override in overrides:
        if not _sweep_values(override):
            raise HydraException(f"{override} gives no value to sweep over; give at least one")


def _sweep_values(override: str) -> list[str]:
    """The first overrides that a sweep (-m) makes of this one, which is itself where it holds a single value."""
    with _conf():
        [parsed] = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([override])
        if not parsed.is_discrete_sweep():
            return [override]
        values = islice(parsed.sweep_string_iterator(), _MOST_TRIED)
        return [f"{parsed.get_key_element()}={value}" for value in values]


def section(config: Config, *names: str) -> dict[str, Any]:
    """Plain values of the named sections, for records and hashes."""
    whole = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(whole, dict)
    return {name: whole[name] for name in names}
