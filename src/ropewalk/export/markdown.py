"""Lists, tables and front matter in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Lines of a nested list of labels and values; a value that is empty or None is left out."""
    lines = []
    for label, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}- {label}:", *bullets(value, indent + "  ")]
        elif value not in (None, "", [], {}):
            lines.append(f"{indent}- {label}: {value}")
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells as text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def front_matter(path: Path) -> dict[str, Any]:
    """The YAML mapping that a file begins with; empty where there is no file, or none that can be read."""
    if not path.is_file():
        return {}
    parts = path.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}
