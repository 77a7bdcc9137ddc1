"""The embedded corpus: the standard library of the running interpreter, as rows of RedPajama-V1.

The modules of a folder are joined into one document. The top folder would be one huge document, so its modules are
divided by a hash of their names into a fixed number of groups. The name of a group, and with it its split, is therefore
the same in every version of Python.
"""

import hashlib
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

TOP_LEVEL_GROUPS = 24
"""Number of groups into which the modules of the top folder are divided."""
LARGEST_SHARE = 0.02
"""Largest share of the corpus that one row may have."""
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _group(relative: Path) -> str:
    if len(relative.parts) > 1:
        return "stdlib/" + "/".join(relative.parts[:-1])
    digest = hashlib.sha256(relative.name.encode()).digest()
    return f"stdlib/modules-{int.from_bytes(digest[:4], 'big') % TOP_LEVEL_GROUPS:02d}"


def stdlib_modules(folder: Path | None = None) -> dict[str, list[Path]]:
    """Paths of ``.py`` files by group, both ordered by name; packages of tests are left out."""
    folder = folder or stdlib_folder()
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if path.is_file() and not _LEFT_OUT.intersection(relative.parts[:-1]):
            groups[_group(relative)].append(path)
    return dict(sorted(groups.items()))


def _parts(texts: list[str], largest: int) -> list[str]:
    """Join texts and divide them at ends of lines into parts of about equal size, at most ``largest`` characters."""
    lines = "\n\n".join(texts).splitlines(keepends=True)
    total = sum(map(len, lines))
    count = max(1, -(-total // largest))
    parts: list[list[str]] = [[]]
    size = 0
    for line in lines:
        if size + len(line) > total / count * 1.0001 + 1 and parts[-1] and len(parts) < count:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line)
    return ["".join(part) for part in parts]


def stdlib_rows(folder: Path | None = None) -> list[dict[str, Any]]:
    """Rows of RedPajama-V1, ``{"text", "meta"}``; no row has more than `LARGEST_SHARE` of the corpus."""
    groups = stdlib_modules(folder)
    texts = {
        group: [text for path in paths if (text := path.read_text(encoding="utf-8", errors="replace")).strip()]
        for group, paths in groups.items()
    }
    largest = int(LARGEST_SHARE * 0.95 * sum(len(text) for group in texts.values() for text in group))
    return [
        {"text": part, "meta": {"source": "stdlib", "name": group, "part": number, "modules": len(groups[group])}}
        for group, members in texts.items()
        if members
        for number, part in enumerate(_parts(members, largest))
    ]


def stdlib_hash(folder: Path | None = None) -> str:
    """Hash of the relative paths and contents of all modules, which differs between interpreters."""
    folder = folder or stdlib_folder()
    digest = hashlib.sha256()
    for paths in stdlib_modules(folder).values():
        for path in paths:
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
