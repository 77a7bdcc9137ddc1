"""Where rows of JSON lines name their id and the source they are from, in RedPajama, SlimPajama, the Pile and Dolma."""

import ast
from typing import Any

import orjson

_LONGEST_META = 1 << 16
"""Characters of a meta object in a string above which it is not parsed."""
_LONGEST_SUBSET = 64


def value_at(row: dict[str, Any], field: str) -> Any:
    """The value at a dotted key, None if there is none."""
    value: Any = row
    for name in field.split("."):
        value = mapping(value).get(name)
    return value


def mapping(value: Any) -> dict[str, Any]:
    """An object of a row, which some copies on the Hugging Face hub hold as a string of JSON or of a Python literal.

    It is empty where there is none.
    """
    if isinstance(value, str) and value.startswith("{") and len(value) <= _LONGEST_META:
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return {}
    return value if isinstance(value, dict) else {}


def identity(row: dict[str, Any]) -> tuple[str, str, str | None]:
    """(name, subset, group) of a row.

    The name is empty if the row does not state it, and the group is None if it equals the name. The subset is the one
    that the row names, or else that of RedPajama-V1 whose rows have the same keys, or else "other".
    """
    meta = mapping(row.get("meta"))
    name, subset, group = _redpajama_v1(row, meta)
    return name, _set_name(row, meta) or subset, group


def _set_name(row: dict[str, Any], meta: dict[str, Any]) -> str | None:
    """The subset that a row names, in the words of RedPajama-V1 where it is one of SlimPajama's."""
    if isinstance(name := meta.get("redpajama_set_name"), str) and name.startswith("RedPajama"):
        return "common_crawl" if name == "RedPajamaCommonCrawl" else name.removeprefix("RedPajama").lower()
    names = (
        row.get("red_pajama_subset"),
        meta.get("pile_set_name"),
        row.get("source"),
        row.get("subset"),
        meta.get("source"),
        meta.get("subset"),
    )
    return next((name for name in names if isinstance(name, str) and _is_set_name(name)), None)


def _is_set_name(name: str) -> bool:
    """Whether this can name a source of many documents, which an address or a path of one document cannot."""
    return 0 < len(name) <= _LONGEST_SUBSET and name.isprintable() and not name.isspace() and "/" not in name


def _redpajama_v1(row: dict[str, Any], meta: dict[str, Any]) -> tuple[str, str, str | None]:
    if "arxiv_id" in meta:
        return f"arxiv:{meta['arxiv_id']}", "arxiv", None
    if "repo_name" in meta:
        return f"github:{meta['repo_name']}/{meta.get('path', '')}", "github", None
    if "short_book_title" in meta:
        return f"book:{meta['short_book_title']}", "book", None
    if meta.get("source") == "stdlib" and "name" in meta:
        return f"{meta['name']}#{meta.get('part', 0)}", "stdlib", str(meta["name"])
    if meta.get("source") in ("c4", "stackexchange"):
        return str(meta.get("url", "")), meta["source"], None
    if "title" in meta and "url" in meta:
        return str(meta["url"] or meta["title"]), "wikipedia", None
    if "title" in meta:
        return f"book:{meta['title']}", "book", None
    for source in (row.get("source"), meta.get("source")):
        if str(source).startswith("cc/"):
            return str(source), "common_crawl", None
    return str(meta.get("url", "")), "other", None
