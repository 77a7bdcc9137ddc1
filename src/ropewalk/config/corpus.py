"""The section corpus: where text comes from, which documents are kept, and how they are split."""

from dataclasses import dataclass, field
from typing import Any

from ropewalk.config import names
from ropewalk.config.keys import at_least, choice, positive, share, some_of, where


def _is_range(bounds: list[Any]) -> bool:
    return (
        len(bounds) == 2
        and all(bound is None or isinstance(bound, int | float) for bound in bounds)
        and (None in bounds or bounds[0] <= bounds[1])
    )


@dataclass
class SourceConfig:
    """A source of text."""

    name: str = choice(names.sources)
    """Kind of source; for a whole corpus also mixture."""
    path: str | None = None
    """jsonl: folder, glob or fsspec URL of JSON lines (.jsonl, .jsonl.zst, .json.gz). text: folder of .txt files, which
    may lie in subfolders, or a single file."""
    url: str | None = None
    """redpajama_v1: address of urls.txt. redpajama_sample and redpajama_v2: address of the folder of all files."""
    subsets: list[str] = field(default_factory=list)
    """redpajama_v1 and redpajama_sample: subsets to fetch; all by default."""
    text_field: str = "text"
    """jsonl: name of the field that holds a document's text; dots lead into inner objects."""
    id_field: str | None = None
    """jsonl: name of the field that holds a document's id; by default RedPajama-V1's, or else a hash of the text."""
    subset_field: str | None = None
    """jsonl: name of the field that names a document's subset; by default RedPajama's, SlimPajama's, the Pile's or
    Dolma's, or else a field source or subset, also in meta. Without any, the subset is other."""
    languages: list[str] = some_of(("en", "de", "fr", "es", "it"), ["en"], empty=False)
    """redpajama_v2: languages to fetch."""
    snapshots: list[str] = field(default_factory=list)
    """redpajama_v2: crawls to fetch, such as 2023-06."""
    buckets: list[str] = some_of(("head", "middle", "tail"), ["head", "middle"], empty=False)
    """redpajama_v2: perplexity buckets to fetch."""
    files: int | None = at_least(1, None)
    """redpajama_v2: number of listed files to fetch; all by default."""
    quality: dict[str, list[Any]] = where(
        _is_range, "must be the lowest and the highest value (null for none)", {}, of_each=True
    )
    """redpajama_v2: lowest and highest value that a document may have, by quality signal; null for no bound."""
    drop_listed_duplicates: bool = True
    """redpajama_v2: whether to leave out the documents that the published lists of duplicates name."""
    max_download_mib: int | None = at_least(1, None)
    """Maximum download in MiB; the files beyond it, in the order of the listing, are left out."""
    parallel_downloads: int = at_least(1, 8)
    """Number of files downloaded at the same time."""
    download_timeout: float = positive(60.0)
    """Seconds without a byte after which a connection counts as broken."""


@dataclass
class CorpusConfig(SourceConfig):
    """The corpus: one source or a mixture of several."""

    name: str = choice(lambda: (*names.sources(), "mixture"))
    sources: dict[str, SourceConfig] = where(
        lambda sources: not any("/" in label for label in sources), "must have labels without /", {}
    )
    """mixture: its sources by freely chosen labels; their subsets are then called LABEL/SUBSET."""
    weights: dict[str, float] = where(
        lambda weights: not weights or (min(weights.values()) >= 0 and sum(weights.values()) > 0),
        "must not be negative, nor all 0",
        {},
    )
    """Share of the training tokens by subset, or by source of a mixture; by default everything is read once."""
    mixture_tokens: int | None = at_least(1, None)
    """Number of training tokens to draw under weights; by default as many as the scarcest subset allows."""
    downloads: str | None = None
    """Folder that keeps downloaded files; by default the folder downloads below work."""
    fingerprint: str | None = None
    """Fingerprint of the source at the time the configuration was composed; set by the stage compose."""
    min_tokens: int = at_least(0, 0)
    """Number of tokens below which a document is left out."""
    min_tokens_by_subset: dict[str, int] = field(default_factory=dict)
    """Numbers that replace min_tokens, by subset."""
    exact_duplicates: bool = True
    """Whether to keep only one of several documents with the same text."""
    near_duplicates: float = share(0.0)
    """Estimated share of common 5-grams of words from which two documents count as near-duplicates, of which only one
    is kept; 0 for no search for them."""
    evaluation_sets: list[str] = field(default_factory=list)
    """Globs of files, JSON lines or .txt, whose text must not be trained on."""
    evaluation_field: str = "text"
    """Name of the field that holds the text in JSON lines of evaluation_sets."""
    evaluation_words: int = at_least(1, 13)
    """Number of consecutive words that count as an overlap with evaluation_sets."""
    evaluation_overlap: int = at_least(1, 1)
    """Number of overlaps from which a training document is left out."""
    search_share: float = 0.15
    """Share of the documents that the searches read."""
    test_share: float = 0.15
    """Share of the documents that evaluate reads; fine-tuning reads what neither split takes."""
    salt: str | None = None
    """Text that decides, with a document's name, the split that the document falls into. null: the first of the empty
    text, 1, 2, ... under which search and test hold enough long documents, and training most of the text; the stage
    prepare chooses it and names it in the data card."""
    min_long_documents: int = at_least(1, 8)
    """Number of documents with at least long_tokens tokens that the search and test splits must each hold; as many
    as are read."""
    long_tokens: int = at_least(1, 16_384)
    """Number of tokens from which a document counts as long; the longest length that is read."""
    train_tokens: int = at_least(0, 0)
    """Number of tokens that at least one document of the training split must have, so that rows of fine-tuning can be
    cut from it; 0 where nothing is trained."""
    across_documents: bool = False
    """Whether documents of fewer than long_tokens tokens are joined with others of their split and subset, with EOS and
    BOS between them, until they have as many. Perplexity over joined documents rewards far context less."""
    max_rejected_share: float = share(0.1)
    """Share of damaged documents above which the stage prepare fails."""
    workers: int | None = at_least(1, None)
    """Number of processes that read and tokenise; by default one per core."""
