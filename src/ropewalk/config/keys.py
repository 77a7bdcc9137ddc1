"""Declares a key of the configuration: its default, and beside it what values the key allows.

``workers: int = at_least(1, 4)`` is a dataclass field with the default 4 whose values below 1 `check_keys` refuses.
None passes where the type is optional; without a default, a key must be given.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from omegaconf import MISSING

T = TypeVar("T")
Names = Callable[[], Sequence[str]]
"""A function that gives the names when a configuration is checked, so that names registered later count too."""


@dataclass(frozen=True)
class Rule:
    """What a key allows."""

    holds: Callable[[Any], bool]
    must: Callable[[], str]
    """Continues the key's name in an error message, as "must be at least 1"."""
    of_each: bool = True
    """Whether the rule is about each value of a list or mapping, and not about the list or mapping as a whole."""


def refuse(message: str, *values: Any) -> NoReturn:
    """Raise ValueError with ``message``, followed by the value at the key, if it is passed."""
    raise ValueError(f"configuration: {message}" + "".join(f", found {value}" for value in values))


def require(holds: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless the configuration's rule holds."""
    if not holds:
        refuse(message)


def _key(default: T, rule: Rule) -> T:
    metadata = {"rule": rule}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def at_least(minimum: float, default: T = MISSING) -> T:
    """A key whose value, or each of whose values, is at least ``minimum``."""
    must = "must not be negative" if minimum == 0 else f"must be at least {minimum}"
    return _key(default, Rule(lambda value: value >= minimum, lambda: must))


def positive(default: T = MISSING) -> T:
    """A key whose value, or each of whose values, is above 0."""
    return _key(default, Rule(lambda value: value > 0, lambda: "must be above 0"))


def share(default: T = MISSING) -> T:
    """A key whose value is a share of something, from 0 to 1."""
    return _key(default, Rule(lambda value: 0 <= value <= 1, lambda: "must lie between 0 and 1"))


def choice(names: Sequence[str] | Names, default: T = MISSING) -> T:
    """A key whose value is one of ``names``."""
    allowed = _function(names)
    return _key(default, Rule(lambda value: value in allowed(), lambda: f"must be one of {', '.join(allowed())}"))


def some_of(names: Sequence[str] | Names, default: T, *, once: bool = False, empty: bool = True) -> T:
    """A key that holds a list of some of ``names``: each only once if ``once``, and none at all only if ``empty``."""
    allowed = _function(names)

    def holds(values: list[str]) -> bool:
        repeated = once and len(set(values)) < len(values)
        return set(values) <= set(allowed()) and (empty or len(values) > 0) and not repeated

    return where(holds, lambda: f"must be some of {', '.join(allowed())}{', each once' if once else ''}", default)


def rising_lengths(default: T = MISSING, *, empty: bool = False) -> T:
    """A key that holds lengths in tokens in strictly rising order, and none at all only if ``empty``."""

    def holds(lengths: list[int]) -> bool:
        return bool(empty or lengths) and all(low < high for low, high in pairwise([0, *lengths]))

    return where(holds, "must be lengths in rising order", default)


def where(
    holds: Callable[[Any], bool], must: str | Callable[[], str], default: T = MISSING, *, of_each: bool = False
) -> T:
    """A key with a rule of its own; ``must`` continues the key's name in an error message."""
    return _key(default, Rule(holds, must if callable(must) else lambda: must, of_each))


def _function(names: Sequence[str] | Names) -> Names:
    return names if callable(names) else lambda: names


def check_keys(section: Any, prefix: str = "") -> None:
    """Check every key of a section, and of the sections, lists and mappings of sections inside it, by its own rule.

    Missing values pass.

    Raises:
        ValueError: a value is not allowed or not finite; names the dotted key, what is allowed, and what was found.
    """
    for item in fields(section):
        _check_value(getattr(section, item.name), f"{prefix}{item.name}", item.metadata.get("rule"))


def _check_value(value: Any, key: str, rule: Rule | None) -> None:
    if value is None or (isinstance(value, str) and value == MISSING):
        return
    if is_dataclass(value):
        check_keys(value, f"{key}.")
    if isinstance(value, float) and not math.isfinite(value):
        refuse(f"{key} must be a finite number", value)
    items: dict[str, Any] = {}
    if isinstance(value, dict):
        items = {f"{key}.{name}": item for name, item in value.items()}
    elif isinstance(value, list):
        items = {f"{key}[{place}]": item for place, item in enumerate(value)}
    if rule is not None:
        of_items = rule.of_each and isinstance(value, list | dict)
        for judged_key, judged in items.items() if of_items else [(key, value)]:
            if not rule.holds(judged):
                refuse(f"{judged_key} {rule.must()}", judged)
    for item_key, item in items.items():
        _check_value(item, item_key, None)
