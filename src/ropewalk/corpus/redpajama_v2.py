"""RedPajama-V2: the files of a choice of languages, snapshots and buckets, and the rows that belong together.

Documents, quality signals and duplicates of a tag ``SNAPSHOT/NUMBER/LANGUAGE_BUCKET`` are joined row by row. The row of
a signal is the number at the end of its id, not its place in the file, so that a missing or additional row does not
give all later documents the signals of others.
"""

from collections.abc import Iterator
from typing import Any

from ropewalk.corpus.documents import Document, Fields, Refused, load, numbered_lines, parse
from ropewalk.corpus.lines import Lines, TooLong, open_binary
from ropewalk.corpus.quality import Rules, broken_rule
from ropewalk.corpus.shards import Shard

_FIELDS = Fields(text="raw_content")


def listings(languages: list[str], snapshots: list[str], buckets: list[str]) -> list[str]:
    """Paths, below the address of the data set, of the listings that hold the tags of these buckets."""
    halves = [half for half in ("head_middle", "tail") if any(bucket in half for bucket in buckets)]
    return [
        f"listings/{language}-{snapshot}-{half}.txt"
        for language in languages
        for snapshot in snapshots
        for half in halves
    ]


def paths_of(tag: str, *, signals: bool, duplicates: bool) -> dict[str, str]:
    """Paths, below the address of the data set, of a tag's files by kind; the bucket tail has only documents."""
    paths = {"documents": f"documents/{tag}.json.gz"}
    if not tag.endswith("_tail"):
        if signals:
            paths["signals"] = f"quality_signals/{tag}.signals.json.gz"
        if duplicates:
            paths["duplicates"] = f"duplicates/{tag}.duplicates.parquet"
    return paths


def duplicate_rows(path: str) -> frozenset[int]:
    """Numbers, from 0, of a shard's documents that are copies of others, from ids ``TAG.json.gz/NUMBER``.

    Raises:
        ValueError: the file is no list of duplicates.
    """
    # Imported here, because it takes 60 MB and most sources do not need it.
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


def shard_rows(shard: Shard, *, first: int, lines: Lines) -> Iterator[tuple[int, Document | Refused]]:
    """Yield (row number, document or the reason for refusing it) from row ``first`` on; see `Shard.rows`."""
    copies = duplicate_rows(shard.duplicates) if shard.duplicates else frozenset()
    signals = _Signals(shard.signals, shard.tag) if shard.signals and shard.quality else None
    _, _, subset = shard.tag.rpartition("/")
    for number, line in numbered_lines(shard.path, first=first, lines=lines):
        if isinstance(line, TooLong):
            yield number, Refused("row too long", line.size, "")
        elif number - 1 in copies:
            yield number, Refused.of(line, "duplicate by RedPajama-V2's list", damaged=False)
        else:
            row = parse(line, _FIELDS)
            if isinstance(row, Document):
                values, _ = load(line)
                refused = None if signals is None else signals.verdict(number - 1, values, line, shard.quality)
                name = f"{shard.tag}.json.gz/{number - 1}"
                url = values.get("url")
                row = refused or Document(name, subset, row.text, url if isinstance(url, str) and url else name)
            yield number, row


class _Signals:
    """The quality signals of a tag, read in step with its documents."""

    def __init__(self, path: str, tag: str) -> None:
        self.path, self.prefix = path, f"{tag}.json.gz/"
        self._rows = numbered_lines(path)
        self._place, self._row = -1, {}  # type: tuple[int, dict[str, Any]]

    def verdict(self, place: int, document: dict[str, Any], line: bytes | bytearray, rules: Rules) -> Refused | None:
        """The reason for leaving out the document in row ``place`` (from 0), None if it is kept."""
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
        signals = self._row.get("quality_signals")
        if not isinstance(signals, dict):
            return Refused.of(line, "no quality signals")
        reason = broken_rule(signals, rules)
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
