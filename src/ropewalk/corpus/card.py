"""The data card: what a corpus became, as JSON and as a picture."""

from collections import Counter
from pathlib import Path
from typing import Any

from ropewalk.corpus.split import SPLITS
from ropewalk.corpus.store import StoreWriter, TokenStore
from ropewalk.files import writing


def describe(store: TokenStore, writer: StoreWriter, long_tokens: int) -> dict[str, Any]:
    """A split's counts, its length histogram by subset, and its hash."""
    by_subset = {subset: _histogram(writer.lengths_by_subset[subset]) for subset in sorted(writer.lengths_by_subset)}
    whole: Counter[int] = sum(writer.lengths_by_subset.values(), Counter())
    return {
        "documents": len(store),
        "tokens": writer.total,
        "longest": store.longest,
        "long_documents": len(store.long_documents(long_tokens)),
        "tokens_by_subset": {subset: writer.tokens_by_subset[subset] for subset in by_subset},
        "documents_from_tokens": _histogram(whole),
        "documents_from_tokens_by_subset": by_subset,
        "hash": store.hash,
    }


def _histogram(by_bits: Counter[int]) -> dict[str, int]:
    """Documents by the least length of their bin: 0, 256, 512, ... up to 2^21."""
    found: Counter[int] = Counter()
    for bits, count in sorted(by_bits.items()):
        power = min(bits - 1, 21)
        found[2**power if power >= 8 else 0] += count
    return {str(low): count for low, count in found.items()}


def draw_card(card: dict[str, Any], path: Path) -> None:
    """Documents by length and subset, and what was left out, as a PNG."""
    # Late, because it takes half a second that most importers of this package need not wait for.
    from matplotlib.figure import Figure

    subsets = sorted({subset for split in SPLITS for subset in card[split]["documents_from_tokens_by_subset"]})
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
    left.set_xlabel("tokens, at least")
    left.set_ylabel("documents kept")
    left.tick_params("x", rotation=45)
    if subsets:
        left.legend(fontsize="small", frameon=False)
    if lost:
        reasons = sorted(lost, key=lambda reason: lost[reason])[-12:]
        right.barh(reasons, [lost[reason] for reason in reasons], color="0.6")
        right.tick_params("y", labelsize="small")
        right.set_xlabel("rows left out")
    else:
        right.axis("off")
        right.text(0.5, 0.5, "no row was left out", ha="center")
    with writing(path) as aside:
        figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
