"""Files that are whole or absent: everything is written to a temporary path and renamed into place."""

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary path for a file or folder, which replaces ``path`` if the block succeeds.

    Files that killed processes left behind are removed.

    Raises:
        OSError: the disk is full; names the folder and says what to do.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.writing-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_running(leftover.name.removeprefix(prefix)):
            remove(leftover)
    aside = path.with_name(f"{prefix}{os.getpid()}")
    remove(aside)
    try:
        with naming_full_disk(path.parent):
            yield aside
            for written in [*aside.rglob("*"), aside] if aside.is_dir() else [aside]:
                descriptor = os.open(written, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            if path.is_dir():
                remove(path)
            aside.replace(path)
    finally:
        remove(aside)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turn an error of the block into an OSError that says what to do where the disk of ``folder`` is full."""
    try:
        yield
    except Exception as error:
        if _is_disk_full(error, folder):
            raise OSError(f"no space left on the disk of {folder}; free some and run the same command again") from None
        raise


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock on ``folder``, created if need be; raises ValueError where another process, a ``name``, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another {name} is at work in {folder}; wait until it has ended, or give this one another output"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether the disk of ``folder`` is full; also by its free space, as torch, safetensors and numpy hide errno."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        return True
    return isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < 2**12


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; nothing need be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; raises ValueError, naming the file, where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None


def file_hash(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_table(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV with the union of their columns, for `dvc plots` and the report."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with writing(path) as aside, aside.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows that `write_table` wrote; cells that can be read as a number become an int or a float."""
    with Path(path).open(newline="") as source:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(source)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
