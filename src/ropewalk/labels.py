"""What MLflow accepts as names, keys and values of parameters, metrics and tags."""

import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 250
"""Characters of a key or name; servers whose database has no longer columns refuse more."""
LONGEST_VALUE = 500


def fit(label: str) -> str:
    """The label as a key that MLflow accepts for a metric, parameter or tag.

    MLflow allows letters, digits, spaces and the characters ``_-.:/``, and no key that would be another one's path.
    A label that has to change ends in its hash, so that different labels stay different.
    """
    key = re.sub(r"[^/\w.\- :]", "_", label)
    if posixpath.normpath(key) != key or key.startswith((".", "/")):
        key = key.replace("/", "_").lstrip(".")
    if not key or key != label or len(key) > LONGEST_NAME:
        key = f"{key[: LONGEST_NAME - 9]}-{hashlib.sha256(label.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return key


def fit_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags under keys that MLflow accepts, with their values cut where they are long."""
    return {fit(key): value[:LONGEST_VALUE] for key, value in tags.items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under the names of their sections and keys, with dots between them."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        named.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return named
