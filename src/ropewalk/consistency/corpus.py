"""The corpus: its source or sources, splits, and documents enough for what reads them."""

from ropewalk.config import Config, SourceConfig
from ropewalk.consistency.values import SOURCES, require


def check_corpus(config: Config) -> None:
    corpus = config.corpus
    if corpus.name == "mixture":
        require(bool(corpus.sources), "corpus.sources must name the sources of a mixture, found none")
        for label, source in corpus.sources.items():
            require(
                source.name in SOURCES,
                f"corpus.sources.{label}.name must be one of {', '.join(SOURCES)}, found {source.name}",
            )
            require("/" not in label, f"corpus.sources must have labels without /, found {label}")
            _check_source(source, f"corpus.sources.{label}")
    else:
        _check_source(corpus, "corpus")
    weights = corpus.weights
    require(
        not weights or (min(weights.values()) >= 0 and sum(weights.values()) > 0),
        f"corpus.weights must not be negative, nor all 0, found {weights}",
    )
    require(corpus.mixture_tokens is None or bool(weights), "corpus.mixture_tokens needs corpus.weights, found none")
    shares = (corpus.search_share, corpus.test_share)
    require(
        min(shares) > 0 and sum(shares) < 1,
        f"corpus.search_share and corpus.test_share must be above 0 and together below 1, found {shares}",
    )
    longest = max(config.road.second_target, *config.evaluate.lengths)
    require(
        corpus.long_tokens >= longest,
        f"corpus.long_tokens must not be below the longest length that is read, found {corpus.long_tokens} "
        f"and {longest}",
    )
    second = config.road.search_second.documents or config.search.documents
    for reader, wanted in (("the second search", second), ("evaluate", config.evaluate.long_documents or 1)):
        require(
            corpus.least_long_documents >= wanted,
            f"corpus.least_long_documents must not be below the {wanted} documents that {reader} reads, "
            f"found {corpus.least_long_documents}",
        )


def _check_source(source: SourceConfig, key: str) -> None:
    name = source.name
    if name in ("jsonl", "text"):
        require(bool(source.path), f"{key}.path must name the files to read when {key} is {name}, found none")
    if name.startswith("redpajama"):
        what = "RedPajama's urls.txt" if name == "redpajama_v1" else "the folder that holds the files"
        require(bool(source.url), f"{key}.url must be the address of {what}, found none")
    for part in ("parallel_downloads", "largest_download_mib", "files"):
        value = getattr(source, part)
        require(value is None or value >= 1, f"{key}.{part} must be at least 1, found {value}")
    require(source.download_timeout > 0, f"{key}.download_timeout must be above 0, found {source.download_timeout}")
    for signal, bounds in source.quality.items():
        require(
            len(bounds) == 2
            and all(bound is None or isinstance(bound, int | float) for bound in bounds)
            and (None in bounds or bounds[0] <= bounds[1]),
            f"{key}.quality.{signal} must be the lowest and the highest value (null for none), found {bounds}",
        )
    if name == "redpajama_v2":
        for part, allowed in (("languages", ("en", "de", "fr", "es", "it")), ("buckets", ("head", "middle", "tail"))):
            values = getattr(source, part)
            require(
                bool(values) and set(values) <= set(allowed),
                f"{key}.{part} must be some of {', '.join(allowed)}, found {values}",
            )
        require(bool(source.snapshots), f"{key}.snapshots must name crawls such as 2023-06, found none")
        require(
            not source.quality or "tail" not in source.buckets,
            f"{key}.quality needs quality signals, which the bucket tail in {key}.buckets does not have",
        )
