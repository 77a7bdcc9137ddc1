"""Files of RedPajama's three publications: V1 from its ``urls.txt``, the sample of V1, and V2 from its listings."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from ropewalk.corpus import redpajama_v2
from ropewalk.corpus.fetch import Fetcher, Remote, check_url

_VERSION = "v1.0.0"
_WITHDRAWN = "book"
SAMPLE = ("arxiv book c4 cc_2019-30 cc_2020-05 cc_2021-04 cc_2022-05 cc_2023-06 github stackexchange wikipedia").split()
"""Names in ``<name>_sample.jsonl``."""


def download_redpajama(listing_url: str, folder: Path, *, subsets: Sequence[str], fetcher: Fetcher) -> list[Path]:
    """Fetch the listed files of ``subsets`` to ``folder/<subset>/<name>`` and return their paths in listing order.

    A file that exists is whole and not fetched again; a part that an earlier call left is resumed. The subset book was
    withdrawn; it is skipped with a warning if the server refuses it.

    Args:
        listing_url: ``urls.txt`` as an http(s) URL or a local path; relative lines are resolved against the URL.
        subsets: path components after ``v1.0.0/`` (arxiv, c4, common_crawl, ...); all if empty.

    Raises:
        ValueError: the listing does not name files of RedPajama-V1 or of the subsets.
        OSError: a file cannot be fetched or written, or is not what was published; the error names its URL or folder.
    """
    listed = _listed(listing_url, folder, fetcher)
    known = sorted({subset for _, subset, _ in listed})
    if unknown := sorted(set(subsets) - set(known)):
        raise ValueError(f"{listing_url} lists no subset {', '.join(unknown)}; it has {', '.join(known)}")
    chosen = [(url, subset, target) for url, subset, target in listed if not subsets or subset in subsets]
    missing = [(url, subset) for url, subset, target in chosen if not target.is_file()]
    sums = _published_sums(missing, fetcher)
    files = [Remote(url, target, sums.get(url), subset == _WITHDRAWN) for url, subset, target in chosen]
    return fetcher.fetch_all(files)


def _published_sums(files: Sequence[tuple[str, str]], fetcher: Fetcher) -> dict[str, str]:
    """Published sha256 by URL, from ``v1.0.0/sha256/<subset>_SHA256SUMS.txt`` beside the files."""
    sums: dict[str, str] = {}
    for subset in dict.fromkeys(subset for _, subset in files):
        urls = [url for url, url_subset in files if url_subset == subset]
        address = urls[0][: urls[0].index(f"{_VERSION}/")] + f"{_VERSION}/sha256/{subset}_SHA256SUMS.txt"
        try:
            text = fetcher.text(address)
        except OSError as error:
            if subset != _WITHDRAWN:
                warnings.warn(f"the files of {subset} are not checked: {error}", stacklevel=3)
            continue
        by_name = {}
        for line in text.splitlines():
            digest, _, name = line.strip().partition(" ")
            if len(digest) == 64:
                by_name[name.strip().lstrip("*").rpartition("/")[2]] = digest.lower()
        for url in urls:
            name = unquote(urlsplit(url).path).rpartition("/")[2]
            if name in by_name:
                sums[url] = by_name[name]
        if unlisted := [url for url in urls if url not in sums]:
            warnings.warn(f"{len(unlisted)} files of {subset} are not checked: {address} lacks them", stacklevel=3)
    return sums


def _listed(listing_url: str, folder: Path, fetcher: Fetcher) -> list[tuple[str, str, Path]]:
    """(url, subset, target) of every file of the listing, without repetitions."""
    base, text = "", ""
    if urlsplit(listing_url).scheme in ("http", "https"):
        base, text = listing_url, _listing(listing_url, fetcher)
    else:
        text = Path(listing_url).read_text(encoding="utf-8", errors="replace")
    listed: dict[Path, tuple[str, str, Path]] = {}
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            url = urljoin(base, line)
            check_url(url, listing_url)
            names = [unquote(name) for name in urlsplit(url).path.split("/")]
            names = names[names.index(_VERSION) + 1 :] if _VERSION in names else []
            target = safe_target(names, folder)
            if len(names) < 2 or target is None:
                raise ValueError(f"{listing_url} lists {url}, which is not of the form .../{_VERSION}/<subset>/<name>")
            listed.setdefault(target, (url, names[0], target))
    if not listed:
        raise ValueError(f"the listing {listing_url} names no files")
    return list(listed.values())


def _listing(url: str, fetcher: Fetcher) -> str:
    try:
        return fetcher.text(url)
    except OSError as error:
        raise OSError(f"the listing {error}") from None


def safe_target(names: Sequence[str], folder: Path) -> Path | None:
    """``folder/<names>``, or None if the names, which come from a server, would lead out of the folder."""
    # A leading dot covers ".", ".." and partly fetched files; percent escapes can contain separators.
    if not names or any(not name or name.startswith(".") or set(name) & set("/\\\0") for name in names):
        return None
    target = folder.joinpath(*names)
    return target if target.resolve().is_relative_to(folder.resolve()) else None


def download_sample(base_url: str, folder: Path, *, subsets: Sequence[str], fetcher: Fetcher) -> list[Path]:
    """Fetch the files ``<subset>_sample.jsonl`` of the sample of V1 and return their paths.

    Args:
        base_url: address of the folder that holds the files.

    Raises:
        OSError: a file cannot be fetched.
    """
    names = [f"{subset}_sample.jsonl" for subset in subsets or SAMPLE]
    return fetcher.fetch_all(
        [Remote(f"{base_url.rstrip('/')}/{name}", folder / name, withdrawn=name.startswith("book")) for name in names]
    )


def download_v2(
    base_url: str,
    folder: Path,
    *,
    languages: list[str],
    snapshots: list[str],
    buckets: list[str],
    files: int | None,
    signals: bool,
    duplicates: bool,
    fetcher: Fetcher,
) -> list[tuple[str, dict[str, Path]]]:
    """Fetch RedPajama-V2's tags of these languages, snapshots and buckets and return (tag, its files by kind) for each.

    Args:
        files: maximum number of tags to fetch.
        signals: whether to fetch the quality signals.
        duplicates: whether to fetch the lists of duplicates.

    Raises:
        ValueError: the listings name no such tag, or something that is not a tag.
        OSError: a file cannot be fetched; the error names it.
    """
    base = base_url.rstrip("/")
    tags: list[str] = []
    for listing in redpajama_v2.listings(languages, snapshots, buckets):
        for tag in map(str.strip, _listing(f"{base}/{listing}", fetcher).splitlines()):
            if not tag:
                continue
            if safe_target([*tag.split("/")], folder) is None or tag.count("/") != 2:
                raise ValueError(f"{base}/{listing} lists {tag}, which is not of the form SNAPSHOT/NUMBER/NAME")
            if tag.rpartition("_")[2] in buckets:
                tags.append(tag)
    if not tags:
        raise ValueError(f"{base} lists no file of corpus.buckets {buckets} for {languages} in {snapshots}")
    tags = list(dict.fromkeys(tags))[:files]
    paths = {tag: redpajama_v2.paths_of(tag, signals=signals, duplicates=duplicates) for tag in tags}
    wanted = [(tag, {kind: folder / path for kind, path in paths[tag].items()}) for tag in tags]
    # All files of a tag follow each other, so that a cap on the size leaves whole tags.
    remotes = [Remote(f"{base}/{path.relative_to(folder)}", path) for _, targets in wanted for path in targets.values()]
    fetched = set(fetcher.fetch_all(remotes))
    return [(tag, targets) for tag, targets in wanted if fetched.issuperset(targets.values())]
