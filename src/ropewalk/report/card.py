"""The figures of a run that lie beside its model card."""

from collections.abc import Sequence
from pathlib import Path

from ropewalk.report import heatmaps, plots, style
from ropewalk.report.style import Row


def card_pictures(
    perplexity: Sequence[Row], passkey: Sequence[Row], *, original_length: int, folder: Path
) -> dict[Path, str]:
    """PNG files written to ``folder``, with what each shows; none of what was not measured."""
    found = {}
    if any(row["model"] in style.MODELS for row in perplexity):
        path = folder / "perplexity.png"
        style.save(plots.perplexity(perplexity, original_length=original_length), path)
        found[path] = "Perplexity against input length, one line per method"
    if passkey:
        path = folder / "passkey.png"
        style.save(heatmaps.passkey(passkey), path)
        found[path] = "Passkey accuracy by length and depth"
    return found
