"""Rejected rows: the side file that lists them, and how many are too many.

datatrove counts what it cannot read in its log and keeps nothing of it (`ropewalk.corpus.documents`).
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson

from ropewalk.config import CorpusConfig
from ropewalk.corpus.duplicates import REASONS, SAME_ID
from ropewalk.corpus.parts import Part


def check_rejected(
    rows: int, rejected: Counter[str], dropped: Counter[str], *, config: CorpusConfig, parts: Path
) -> None:
    """Raise ValueError where nothing is left of a corpus, or more of it was rejected than is allowed.

    Args:
        parts: folder of the parts, whose lists of rejected rows the message names.
    """
    refused = rejected.total()
    if rows == refused + dropped.total():
        lost = f"; left out as configured: {dict(dropped)}" if dropped else ""
        raise ValueError(
            f"the corpus {config.name} holds no document with text; rejected: {dict(rejected) or 'none'}{lost}"
        )
    if refused > config.largest_rejected_share * rows:
        raise ValueError(
            f"{refused} of {rows} rows were rejected ({dict(rejected)}), more than "
            f"corpus.largest_rejected_share {config.largest_rejected_share}; mend the files or raise it "
            f"(the rows are listed in {parts}/*/rejected.jsonl)"
        )


def write_rejected(parts: Sequence[Part], verdicts: np.ndarray, path: Path) -> None:
    """Every rejected row with its file, number, reason and beginning; rows with another one's id by their names."""
    start = 0
    with path.open("wb") as out:
        for part in parts:
            with (part.path / "rejected.jsonl").open("rb") as rows:
                shutil.copyfileobj(rows, out)
            own = np.flatnonzero(verdicts[start : start + len(part)] == SAME_ID)
            start += len(part)
            if len(own):
                names = part.documents()
                for number in own.tolist():
                    row = {"file": part.about["shard"], "reason": REASONS[SAME_ID], "name": names[number][0]}
                    out.write(orjson.dumps(row) + b"\n")
