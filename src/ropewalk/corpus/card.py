"""The data card: what a corpus was turned into, as JSON and as a plot."""

from collections import Counter
from pathlib import Path
from typing import Any

from ropewalk.corpus.split import SPLITS
from ropewalk.corpus.store import StoreWriter, TokenStore
from ropewalk.files import writing

_MOST_DRAWN = 12
"""Number of subsets, and of reasons for leaving rows out, that the plot shows one by one."""


def describe(store: TokenStore, writer: StoreWriter, long_tokens: int) -> dict[str, Any]:
    """A split's numbers of documents and tokens, its histograms of lengths by subset, and its hash."""
    by_subset = {subset: _histogram(writer.lengths_by_subset[subset]) for subset in sorted(writer.lengths_by_subset)}
    joined = {"joined_documents": count} if (count := int(store.joined.sum())) else {}
    whole: Counter[int] = sum(writer.lengths_by_subset.values(), Counter())
    return {
        "documents": len(store),
        "tokens": writer.total,
        "longest": store.longest,
        "long_documents": len(store.long_documents(long_tokens)),
        **joined,
        "tokens_by_subset": {subset: writer.tokens_by_subset[subset] for subset in by_subset},
        "documents_from_tokens": _histogram(whole),
        "documents_from_tokens_by_subset": by_subset,
        "hash": store.hash,
    }


def _histogram(by_bits: Counter[int]) -> dict[str, int]:
    """Number of documents by the lower edge of their bin in tokens: 0, 256, 512, ... up to 2^21."""
    documents: Counter[int] = Counter()
    for bits, count in sorted(by_bits.items()):
        power = min(bits - 1, 21)
        documents[2**power if power >= 8 else 0] += count
    return {str(low): count for low, count in documents.items()}


def draw_card(card: dict[str, Any], path: Path) -> None:
    """Draw the documents by length and subset, and the reasons for which rows were left out, as a PNG."""
    # Imported here, because it takes half a second that most importers of this package need not wait for.
    from matplotlib.figure import Figure

    documents: Counter[str] = Counter()
    for split in SPLITS:
        for subset, by_length in card[split]["documents_from_tokens_by_subset"].items():
            documents[subset] += sum(by_length.values())
    subsets = sorted(subset for subset, _ in documents.most_common(_MOST_DRAWN))
    bins = sorted({int(low) for split in SPLITS for low in card[split]["documents_from_tokens"]})
    lost = {**card["rejected"], **card["dropped"]}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    base = [0] * len(bins)
    for subset in subsets:
        heights = [
            sum(card[split]["documents_from_tokens_by_subset"].get(subset, {}).get(str(low), 0) for split in SPLITS)
            for low in bins
        ]
        left.bar([f"{low:,}" for low in bins], heights, bottom=base, label=subset)
        base = [below + height for below, height in zip(base, heights, strict=True)]
    if others := len(documents) - len(subsets):
        whole = [sum(card[split]["documents_from_tokens"].get(str(low), 0) for split in SPLITS) for low in bins]
        rest = [height - below for height, below in zip(whole, base, strict=True)]
        left.bar([f"{low:,}" for low in bins], rest, bottom=base, label=f"{others} others", color="0.8")
    left.set_xlabel("tokens, at least")
    left.set_ylabel("documents kept")
    left.tick_params("x", rotation=45)
    if subsets:
        left.legend(fontsize="small", frameon=False)
    if lost:
        reasons = sorted(lost, key=lambda reason: lost[reason])[-_MOST_DRAWN:]
        right.barh(reasons, [lost[reason] for reason in reasons], color="0.6")
        right.tick_params("y", labelsize="small")
        right.set_xlabel("rows left out")
    else:
        right.axis("off")
        right.text(0.5, 0.5, "no row was left out", ha="center")
    with writing(path) as aside:
        figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
