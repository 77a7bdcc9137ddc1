"""RedPajama-V2: which files a choice of languages, snapshots and buckets means, and their rows joined.

Documents, quality signals and duplicates of one tag ``SNAPSHOT/NUMBER/LANGUAGE_BUCKET`` belong together row by
row. Rows are joined by the number that a signal's id ends with, not by counting, so that one row more or less
does not give every later document another one's signals.
"""

from collections.abc import Iterator
from typing import Any

from ropewalk.corpus.documents import Document, Fields, Refused, load, numbered_lines, parse
from ropewalk.corpus.lines import Lines, TooLong, open_binary
from ropewalk.corpus.quality import Rules, broken_rule

BUCKETS = ("head", "middle", "tail")
LANGUAGES = ("en", "de", "fr", "es", "it")
_FIELDS = Fields(text="raw_content")


def listings(languages: list[str], snapshots: list[str], buckets: list[str]) -> list[str]:
    """Paths of the listings that hold the tags of these buckets, below the address of the data set."""
    halves = [half for half in ("head_middle", "tail") if any(bucket in half for bucket in buckets)]
    return [
        f"listings/{language}-{snapshot}-{half}.txt"
        for language in languages
        for snapshot in snapshots
        for half in halves
    ]


def paths_of(tag: str, *, signals: bool, duplicates: bool) -> dict[str, str]:
    """The files of a tag by kind, below the address of the data set; the tail bucket has documents only."""
    paths = {"documents": f"documents/{tag}.json.gz"}
    if not tag.endswith("_tail"):
        if signals:
            paths["signals"] = f"quality_signals/{tag}.signals.json.gz"
        if duplicates:
            paths["duplicates"] = f"duplicates/{tag}.duplicates.parquet"
    return paths


def duplicate_rows(path: str) -> frozenset[int]:
    """Numbers, from 0, of a shard's documents that are copies of others, from ids ``TAG.json.gz/NUMBER``."""
    # Late, because most sources do without it and it takes 60 MB.
    import pyarrow
    import pyarrow.parquet

    try:
        with open_binary(path) as source:
            ids = pyarrow.parquet.read_table(source, columns=["doc_id"])["doc_id"].to_pylist()
        return frozenset(int(name.rpartition("/")[2]) for name in ids)
    except (pyarrow.ArrowException, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no list of duplicates ({' '.join(str(error).split())}); fetch the file again"
        ) from None


def read_v2(
    path: str,
    tag: str,
    signals: str | None,
    duplicates: str | None,
    rules: Rules,
    *,
    first: int = 1,
    lines: Lines | None = None,
) -> Iterator[tuple[int, Document | Refused]]:
    """(number from 1, document or why there is none) of a tag's rows from row ``first`` on."""
    copies = duplicate_rows(duplicates) if duplicates else frozenset()
    joined = _Signals(signals, tag) if signals and rules else None
    _, _, subset = tag.rpartition("/")
    for number, line in numbered_lines(path, first=first, lines=lines):
        if isinstance(line, TooLong):
            yield number, Refused("row too long", line.size, "")
        elif number - 1 in copies:
            yield number, Refused.of(line, "duplicate by RedPajama-V2's list", damaged=False)
        else:
            found = parse(line, _FIELDS)
            if isinstance(found, Document):
                row, _ = load(line)
                refused = None if joined is None else joined.verdict(number - 1, row, line, rules)
                name = f"{tag}.json.gz/{number - 1}"
                url = row.get("url")
                found = refused or Document(name, subset, found.text, url if isinstance(url, str) and url else name)
            yield number, found


class _Signals:
    """A tag's quality signals, read along with its documents."""

    def __init__(self, path: str, tag: str) -> None:
        self.path, self.prefix = path, f"{tag}.json.gz/"
        self._rows = numbered_lines(path)
        self._place, self._row = -1, {}  # type: tuple[int, dict[str, Any]]

    def verdict(self, place: int, document: dict[str, Any], line: bytes | bytearray, rules: Rules) -> Refused | None:
        """Why the document at ``place`` (from 0) is left out, None where it is kept."""
        while self._place < place:
            following = next(self._rows, None)
            if following is None:
                return Refused.of(line, "no quality signals")
            self._take(following[1])
        if self._place > place:
            return Refused.of(line, "no quality signals")
        url = (self._row.get("metadata") or {}).get("url")
        if url is not None and url != document.get("url"):
            return Refused.of(line, "quality signals of another document")
        found = self._row.get("quality_signals")
        if not isinstance(found, dict):
            return Refused.of(line, "no quality signals")
        reason = broken_rule(found, rules)
        return None if reason is None else Refused.of(line, reason, damaged=False)

    def _take(self, line: bytes | bytearray | TooLong) -> None:
        row = None if isinstance(line, TooLong) else load(line)[0]
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(name, str):
            return
        number = name.removeprefix(self.prefix)
        if name == number or not number.isdigit():
            raise ValueError(
                f"{self.path} is out of step with its documents: it holds {name!r}, not a row of {self.prefix}; "
                "fetch both files again"
            )
        self._place, self._row = int(number), row
