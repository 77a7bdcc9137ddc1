"""Sufficiency: whether every split holds enough long documents, estimated before they are tokenised.

The estimate refuses only what cannot pass; the stores are counted exactly when they are written.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ropewalk.corpus.duplicates import FIRST
from ropewalk.corpus.lengths import LongestDocuments
from ropewalk.corpus.split import SEARCH, TEST, TRAIN, Shares

SALTS = ("", *map(str, range(1, 512)))
"""Salts of which the first that leaves enough long documents to the search and test splits is chosen."""
_SHORTEST = 256
"""Length in tokens below which none is recommended."""


@dataclass(frozen=True)
class Need:
    """What the splits must hold."""

    documents: int
    """Number of documents of at least ``tokens`` tokens in the search and in the test split."""
    tokens: int
    across: bool
    """Whether shorter documents are joined (`ropewalk.corpus.joining`)."""
    train_tokens: int = 0
    """Number of tokens of at least one document of the training split; 0 where nothing is trained."""

    def count(self, lengths: NDArray[np.int64], subsets: NDArray[np.str_]) -> int:
        """Number of long documents among those of a split, given in the order of the corpus."""
        if not self.across:
            return int((lengths >= self.tokens).sum())
        count, joined = 0, Counter[str]()
        for length, subset in zip(lengths.tolist(), subsets, strict=True):
            if length >= self.tokens:
                count += 1
            else:
                joined[subset] += length
                if joined[subset] >= self.tokens:
                    count += 1
                    del joined[subset]
        return count

    def held(self, documents: LongestDocuments, shares: Shares, salt: str, *, surely: bool) -> tuple[int, int]:
        """Numbers of long documents in the search and test splits under a salt: at least (``surely``) or at most."""
        search, test = self._counts((SEARCH, TEST), documents, shares, salt, surely=surely)
        return search, test

    def is_trainable(self, documents: LongestDocuments, shares: Shares, salt: str, *, surely: bool) -> bool:
        """Whether the training split holds a document of ``train_tokens`` tokens under a salt."""
        if not self.train_tokens:
            return True
        need = replace(self, tokens=self.train_tokens)
        return need._counts((TRAIN,), documents, shares, salt, surely=surely)[0] > 0

    def _counts(
        self, splits: Sequence[int], documents: LongestDocuments, shares: Shares, salt: str, *, surely: bool
    ) -> list[int]:
        """Number of long documents in each of the splits under a salt."""
        if not self.across:
            documents = documents[documents.high >= self.tokens]
        split = shares.split(documents.groups, salt)
        kept = _kept_copies(documents, split)
        lengths = documents.low if surely else documents.high
        chosen = [kept[split[kept] == wanted] for wanted in splits]
        return [self.count(lengths[places], documents.subsets[places]) for places in chosen]

    def is_met(self, documents: LongestDocuments, shares: Shares, salt: str, *, surely: bool) -> bool:
        """Whether every split holds enough long documents under a salt."""
        is_enough = min(self.held(documents, shares, salt, surely=surely)) >= self.documents
        return is_enough and self.is_trainable(documents, shares, salt, surely=surely)

    def salts(self, documents: LongestDocuments, shares: Shares, *, surely: bool) -> Iterator[str]:
        """Yield those of `SALTS` under which the need is met."""
        lengths = documents.low if surely else documents.high
        whole = lengths.sum() // self.tokens if self.across else (lengths >= self.tokens).sum()
        if whole >= 2 * self.documents:
            yield from (salt for salt in SALTS if self.is_met(documents, shares, salt, surely=surely))


def _kept_copies(documents: LongestDocuments, splits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Indices of the documents without further copies of a text, as `ropewalk.corpus.duplicates` keeps them."""
    order = np.lexsort((documents.places, FIRST[splits], documents.texts))
    return np.sort(order[np.unique(documents.texts[order], return_index=True)[1]])


def choose_salt(documents: LongestDocuments, shares: Shares, need: Need) -> str:
    """The first of `SALTS` under which both splits hold enough long documents and training most of the text.

    Where there is none, the first that leaves less text to training, or that may leave enough long documents.
    """
    least = min(0.5, 0.75 * (1 - shares.search - shares.test))
    chosen: list[str] = []
    for surely in (True, False):
        for salt in need.salts(documents, shares, surely=surely):
            if _train_share(documents, shares.split(documents.groups, salt)) >= least:
                return salt
            chosen.append(salt)
        if chosen:
            break
    return (chosen or SALTS)[0]


def _train_share(documents: LongestDocuments, splits: NDArray[np.uint8]) -> float:
    return float(documents.high[splits == TRAIN].sum() / max(1, documents.high.sum()))


def check_estimate(documents: LongestDocuments, shares: Shares, need: Need, *, salt: str, is_given: bool) -> None:
    """Raise ValueError where the splits cannot hold enough long documents under ``salt``; says what to do.

    Args:
        documents: those that are kept.
        is_given: whether the salt is the configuration's own.
    """
    if need.across and len(documents) < documents.total:
        return  # How long the shorter documents are together is not known.
    search, test = need.held(documents, shares, salt, surely=False)
    if min(search, test) >= need.documents:
        if not need.is_trainable(documents, shares, salt, surely=False):
            raise ValueError(_untrainable(need, documents=documents.total))
        return

    def would_suffice(other: Need, *, salt_is_given: bool = is_given) -> bool:
        if salt_is_given:
            return other.is_met(documents, shares, salt, surely=True)
        return any(True for _ in other.salts(documents, shares, surely=True))

    lengths = (1 << power for power in range((need.tokens - 1).bit_length() - 1, _SHORTEST.bit_length() - 2, -1))

    def shorter(tokens: int) -> Need:
        # Rows of training are no longer than the target, which goes down with it.
        return replace(need, tokens=tokens, train_tokens=min(need.train_tokens, tokens))

    allowed = next((tokens for tokens in lengths if would_suffice(shorter(tokens))), None)
    advice = []
    if is_given and would_suffice(need, salt_is_given=False):
        advice.append("leave out corpus.salt, and one is chosen under which they suffice")
    elif need.count(documents.low, documents.subsets) > 2 * need.documents:
        advice.append("raise corpus.search_share and corpus.test_share")
    if not need.across and would_suffice(replace(need, across=True)):
        advice.append("join short documents with corpus.across_documents=true")
    raise ValueError(
        shortage(
            need,
            held=(search, test),
            documents=documents.total,
            longest=documents.longest,
            allowed=allowed,
            advice=advice,
            about="about ",
        )
    )


def check_stores(lengths: Sequence[NDArray[np.int64]], need: Need, *, documents: int) -> None:
    """Raise ValueError where a split holds too few long documents.

    Args:
        lengths: lengths of the documents of the training, the search and the test split, in tokens.
        documents: number of documents of all splits.
    """
    train, *lengths = lengths
    held = [int((of_split >= need.tokens).sum()) for of_split in lengths]
    if min(held) >= need.documents:
        if train.max(initial=0) < need.train_tokens:
            raise ValueError(_untrainable(need, documents=documents))
        return
    # As long as the shortest document of those that are needed.
    reach = min(
        int(np.sort(of_split)[-need.documents]) if len(of_split) >= need.documents else 0 for of_split in lengths
    )
    allowed = 1 << (reach.bit_length() - 1) if reach >= _SHORTEST else None
    longest = max(int(of_split.max(initial=0)) for of_split in lengths)
    raise ValueError(shortage(need, held=held, documents=documents, longest=longest, allowed=allowed))


def _untrainable(need: Need, *, documents: int) -> str:
    """One line that says that nothing is left to train on, and what to do."""
    return (
        f"the documents are too few or too short: no document of at least {need.train_tokens} tokens "
        f"(corpus.train_tokens) is left to the training split; the corpus has {documents}; add some, or change "
        "corpus.search_share, corpus.test_share or corpus.salt, or train nothing with extension=untrained"
    )


def shortage(
    need: Need,
    *,
    held: Sequence[int],
    documents: int,
    longest: int,
    allowed: int | None,
    advice: Sequence[str] = (),
    about: str = "",
) -> str:
    """One line that says what is needed, what there is, the longest length that it allows, and what to do.

    Args:
        held: numbers of long documents in the search and test splits.
        documents: number of documents of the whole corpus.
        allowed: the largest power of two that would be possible as corpus.long_tokens.
        advice: what could be done beside adding documents and reading less far.
        about: put before numbers that are estimated.
    """
    search, test = held
    least = 2 * need.documents + (need.train_tokens > 0)
    if allowed is not None:
        remedy = [
            f"they allow {allowed} tokens: lower extension.target until corpus.long_tokens, the longest length that is "
            f"read, is {allowed}",
            "add more or longer documents",
        ]
    elif documents < least:
        remedy = [f"all splits together need {least} documents at least: add some", "lower corpus.min_long_documents"]
    else:
        remedy = [f"they suffice for no length from {_SHORTEST} tokens on: add longer documents"]
    return (
        f"the documents are too few or too short: the search and test splits each need {need.documents} of at least "
        f"{need.tokens} tokens (corpus.min_long_documents, corpus.long_tokens), and hold {about}{search} and {test}; "
        f"the corpus has {documents}, the longest of {about}{longest} tokens; {', or '.join([*remedy, *advice])}"
    )
