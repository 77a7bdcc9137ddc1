"""RedPajama's three publications as files to fetch: V1 by its ``urls.txt``, the 1T sample, and V2 by its listings."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from ropewalk.corpus import redpajama_v2
from ropewalk.corpus.fetch import Fetcher, Remote, check_url

_VERSION = "v1.0.0"
_WITHDRAWN = "book"
SAMPLE = ("arxiv book c4 cc_2019-30 cc_2020-05 cc_2021-04 cc_2022-05 cc_2023-06 github stackexchange wikipedia").split()
"""Of the files ``<name>_sample.jsonl``."""


def download_redpajama(listing_url: str, folder: Path, *, subsets: Sequence[str], fetcher: Fetcher) -> list[Path]:
    """Fetch the listed files of ``subsets`` to ``folder/<subset>/<name>`` and return their paths in listing order.

    A file that is there is whole and not fetched again; a part left by an earlier call is gone on from.
    The withdrawn book subset is passed over with a warning where the server refuses it.

    Args:
        listing_url: ``urls.txt`` as an http(s) URL or a local path; relative lines are resolved against the URL.
        subsets: path components after ``v1.0.0/`` (arxiv, c4, common_crawl, ...); all where empty.

    Raises:
        ValueError: the listing does not name files of RedPajama-V1 or of the subsets.
        OSError: a file cannot be fetched or written, or is not what was published; names the URL or folder.
    """
    found = _listed(listing_url, folder, fetcher)
    known = sorted({subset for _, subset, _ in found})
    if unknown := sorted(set(subsets) - set(known)):
        raise ValueError(f"{listing_url} lists no subset {', '.join(unknown)}; it has {', '.join(known)}")
    chosen = [(url, subset, target) for url, subset, target in found if not subsets or subset in subsets]
    missing = [(url, subset) for url, subset, target in chosen if not target.is_file()]
    sums = _published_sums(missing, fetcher)
    files = [Remote(url, target, sums.get(url), subset == _WITHDRAWN) for url, subset, target in chosen]
    return fetcher.fetch_all(files)


def _published_sums(files: Sequence[tuple[str, str]], fetcher: Fetcher) -> dict[str, str]:
    """sha256 by URL, from ``v1.0.0/sha256/<subset>_SHA256SUMS.txt`` beside the files."""
    sums: dict[str, str] = {}
    for subset in dict.fromkeys(subset for _, subset in files):
        own = [url for url, of in files if of == subset]
        address = own[0][: own[0].index(f"{_VERSION}/")] + f"{_VERSION}/sha256/{subset}_SHA256SUMS.txt"
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
        for url in own:
            name = unquote(urlsplit(url).path).rpartition("/")[2]
            if name in by_name:
                sums[url] = by_name[name]
        if unlisted := [url for url in own if url not in sums]:
            warnings.warn(f"{len(unlisted)} files of {subset} are not checked: {address} lacks them", stacklevel=3)
    return sums


def _listed(listing_url: str, folder: Path, fetcher: Fetcher) -> list[tuple[str, str, Path]]:
    """(url, subset, target) of every file of the listing, once each."""
    base, text = "", ""
    if urlsplit(listing_url).scheme in ("http", "https"):
        base, text = listing_url, _listing(listing_url, fetcher)
    else:
        text = Path(listing_url).read_text(encoding="utf-8", errors="replace")
    found: dict[Path, tuple[str, str, Path]] = {}
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            url = urljoin(base, line)
            check_url(url, listing_url)
            names = [unquote(name) for name in urlsplit(url).path.split("/")]
            names = names[names.index(_VERSION) + 1 :] if _VERSION in names else []
            target = safe_target(names, folder)
            if len(names) < 2 or target is None:
                raise ValueError(f"{listing_url} lists {url}, which is not of the form .../{_VERSION}/<subset>/<name>")
            found.setdefault(target, (url, names[0], target))
    if not found:
        raise ValueError(f"the listing {listing_url} names no files")
    return list(found.values())


def _listing(url: str, fetcher: Fetcher) -> str:
    try:
        return fetcher.text(url)
    except OSError as error:
        raise OSError(f"the listing {error}") from None


def safe_target(names: Sequence[str], folder: Path) -> Path | None:
    """``folder/<names>``, None where names from outside would lead out of it."""
    # A leading dot covers "." and ".." as well as our own parts; separators can come out of percent escapes.
    if not names or any(not name or name.startswith(".") or set(name) & set("/\\\0") for name in names):
        return None
    target = folder.joinpath(*names)
    return target if target.resolve().is_relative_to(folder.resolve()) else None


def download_sample(base_url: str, folder: Path, *, subsets: Sequence[str], fetcher: Fetcher) -> list[Path]:
    """Fetch the 1T sample's files ``<subset>_sample.jsonl`` from an address that has them all."""
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
    """(tag, its files by kind) for RedPajama-V2's tags of these languages, snapshots and buckets, in listing order.

    Args:
        files: tags to fetch at most.

    Raises:
        ValueError: a listing names none of them, or something that is no tag.
        OSError: a file cannot be fetched; names it.
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
    kinds = [redpajama_v2.paths_of(tag, signals=signals, duplicates=duplicates) for tag in tags]
    wanted = [(tag, {kind: folder / path for kind, path in own.items()}) for tag, own in zip(tags, kinds, strict=True)]
    # File by file of a tag, so that a cap leaves whole tags.
    remotes = [Remote(f"{base}/{path.relative_to(folder)}", path) for _, paths in wanted for path in paths.values()]
    there = set(fetcher.fetch_all(remotes))
    return [(tag, paths) for tag, paths in wanted if there.issuperset(paths.values())]
