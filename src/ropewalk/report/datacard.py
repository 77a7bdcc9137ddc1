"""What the texts of a run are, from the data card that the stage prepare wrote."""

from collections.abc import Mapping
from typing import Any

from ropewalk.report.tables import Table, table

_SPLITS = {"train": "training", "search": "search", "test": "test"}


def data_tables(card: Mapping[str, Any]) -> list[Table]:
    """Counts of each split, documents by length, tokens by subset, and what was left out."""
    splits = [split for split in _SPLITS if isinstance(card.get(split), Mapping)]
    names = [_SPLITS[split] for split in splits]
    keys = {
        "documents": "documents", "tokens": "tokens", "longest": "tokens in the longest",
        "long_documents": "documents of the longest length read",
    }  # fmt: skip
    counts = [
        (label, *(f"{int(card[split][key]):,}" if key in card[split] else "–" for split in splits))
        for key, label in keys.items()
    ]
    counts.append(("hash of the tokens", *(str(card[split].get("hash", "–"))[:12] for split in splits)))
    found = [table("Splits, by document", ("", *names), counts)]
    for key, caption, head in (
        ("documents_from_tokens", "Documents by length", "tokens, at least"),
        ("tokens_by_subset", "Tokens by subset", "subset"),
    ):
        labels = list(dict.fromkeys(label for split in splits for label in card[split].get(key, {})))
        if key == "documents_from_tokens":
            labels = sorted(labels, key=int)
        if len(labels) > 1:
            body = [
                (
                    f"{int(label):,}" if label.isdigit() else label,
                    *(f"{int(card[split].get(key, {}).get(label, 0)):,}" for split in splits),
                )
                for label in labels
            ]
            found.append(table(caption, (head, *names), body))
    lost = {
        f"{kind}: {reason}": count
        for kind in ("rejected", "dropped")
        for reason, count in (card.get(kind) or {}).items()
        if count
    }
    if lost:
        found.append(table("Left out", ("reason", "rows"), [(reason, f"{n:,}") for reason, n in lost.items()]))
    return found


def data_sentences(card: Mapping[str, Any]) -> list[str]:
    """Where the texts come from, and that no document is in two splits."""
    source = f"Corpus: {card.get('corpus', 'not named')}."
    if fingerprint := card.get("fingerprint"):
        source = f"{source} Fingerprint of its source: {fingerprint}."
    return [source, "A document is in one split only; the split is by a hash of its name."]
