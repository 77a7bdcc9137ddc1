"""The kind of corpus that a path holds."""

from pathlib import Path

from ropewalk.defaults.known import Default, Known, Rule


def name(known: Known) -> Default:
    path = known["corpus.path"]
    if path is None:
        return Default("stdlib", "no corpus.path: the standard library of this Python")
    place = Path(path).expanduser()
    if any(file.suffix.lower() == ".txt" for file in (place, *place.rglob("*"))):
        return Default("text", "corpus.path holds .txt files")
    return Default("jsonl", "corpus.path holds no .txt files")


def salt(known: Known) -> Default:
    """The embedded corpus has been split in this way since the demo's figures were first measured."""
    if known["corpus.name"] == "stdlib":
        return Default("42", "the demo's split")
    return Default(None, "chosen by the stage prepare, so that every split holds enough long documents")


RULES: dict[str, Rule] = {"corpus.name": name, "corpus.salt": salt}
