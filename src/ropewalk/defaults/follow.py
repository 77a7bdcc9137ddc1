"""Fills the keys of a configuration that follow from others, from the model and from the device."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from ropewalk.config import Config
from ropewalk.config.keys import refuse
from ropewalk.defaults import budgets, lengths, text, training
from ropewalk.defaults.known import Known, Rule

RULES: dict[str, Rule] = {**text.RULES, **lengths.RULES, **budgets.RULES, **training.RULES}
"""Rules by dotted key."""


def follow(config: Config, *, sections: Sequence[str] | None = None) -> Config:
    """Fill the missing keys of ``config`` in place, recording in ``config.followed`` why, and return it.

    Args:
        sections: the sections to fill; by default all.

    Raises:
        ValueError: a key must be given, or the model that a value follows from cannot be read.
        FileNotFoundError: the model is not there.
    """
    known = Known(config, RULES)
    for key in list(_missing(config, "")):
        if sections is None or key.partition(".")[0] in sections:
            if key not in RULES:
                refuse(f"{key} must be given")
            set_value(config, key, known[key])
            config.followed[key] = known.followed[key].reason
    return config


def _missing(section: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of the missing values, also in sections inside lists and mappings."""
    if is_dataclass(section):
        items = {item.name: getattr(section, item.name) for item in fields(section)}
    elif isinstance(section, dict):
        items = section
    elif isinstance(section, list):
        items = {str(place): item for place, item in enumerate(section)}
    else:
        return
    for name, value in items.items():
        key = f"{prefix}[{name}]" if isinstance(section, list) else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, str) and value == MISSING:
            yield key
        else:
            yield from _missing(value, key)


def set_value(config: Config, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    *path, name = key.split(".")
    section: Any = config
    for part in path:
        section = getattr(section, part)
    setattr(section, name, value)


def followed_text(config: Config) -> str:
    """The values that follow, each with the reason, as comments of a YAML file; None and empty lists are left out."""
    rows = []
    for key, reason in sorted(config.followed.items()):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value not in (None, []):
            rows.append((key, str(value), reason))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = (f"#   {key:<{widths[0]}}  {value:<{widths[1]}}  {reason}" for key, value, reason in rows)
    title = "# These values were not given and follow from others, from the model and from the device:"
    return "\n".join([title, *lines])
