"""The sources that ``corpus.name`` can choose from, one entry each. Importing this module imports none of them.

Another package adds a source through an entry point of the group ``ropewalk.sources`` that names its `Source`;
a notebook or a test calls ``SOURCES.register``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ropewalk.registry import Function, Registry


@dataclass(frozen=True)
class Source:
    """A place where text comes from."""

    name: str
    """Value of ``corpus.name``."""
    shards: Function
    """``shards(config, folder=folder, downloads=downloads)`` returns the list of `ropewalk.corpus.shards.Shard` in
    the order of the corpus. ``config`` is the source's section of the configuration, ``folder`` is for files that are
    made on the way, and ``downloads`` for files that are fetched and kept for the next run.
    """
    fingerprint: Function = "ropewalk.corpus.sources:address_fingerprint"
    """``fingerprint(config)`` returns a string that changes when the documents do."""
    required: Mapping[str, str] = field(default_factory=dict)
    """Keys of the section that must be set, each with what its value must be, as the end of "KEY must ..."."""


_FOLDER = "must be the address of the folder that holds the files"

SOURCES = Registry(
    (
        Source(
            "stdlib",
            shards="ropewalk.corpus.sources:stdlib_shards",
            fingerprint="ropewalk.corpus.sources:stdlib_fingerprint",
        ),
        Source(
            "jsonl",
            shards="ropewalk.corpus.sources:json_shards",
            fingerprint="ropewalk.corpus.sources:json_fingerprint",
            required={"path": "must name the files to read"},
        ),
        Source(
            "text",
            shards="ropewalk.corpus.sources:text_shards",
            fingerprint="ropewalk.corpus.sources:text_fingerprint",
            required={"path": "must name the files to read"},
        ),
        Source(
            "redpajama_v1",
            shards="ropewalk.corpus.sources:redpajama_shards",
            required={"url": "must be the address of RedPajama's urls.txt"},
        ),
        Source(
            "redpajama_sample",
            shards="ropewalk.corpus.sources:sample_shards",
            required={"url": _FOLDER},
        ),
        Source(
            "redpajama_v2",
            shards="ropewalk.corpus.sources:v2_shards",
            required={"url": _FOLDER, "snapshots": "must name crawls such as 2023-06"},
        ),
    ),
    group="ropewalk.sources",
)
