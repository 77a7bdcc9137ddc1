"""Rejected rows: the file that lists them, and the share of them that is allowed."""

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
    """Raise ValueError if no document is left of a corpus, or if more rows were rejected than is allowed.

    Args:
        rows: number of all rows.
        rejected: number of damaged rows by reason.
        dropped: number of rows left out as configured, by reason.
        parts: folder of the parts, whose lists of rejected rows are named in the message.
    """
    refused = rejected.total()
    if rows == refused + dropped.total():
        lost = f"; left out as configured: {dict(dropped)}" if dropped else ""
        where = f" at corpus.path {config.path}" if config.path else ""
        raise ValueError(
            f"the corpus {config.name}{where} holds no document with text; rejected: {dict(rejected) or 'none'}{lost}"
        )
    if refused > config.max_rejected_share * rows:
        raise ValueError(
            f"{refused} of {rows} rows were rejected ({dict(rejected)}), more than "
            f"corpus.max_rejected_share {config.max_rejected_share}; mend the files or raise it "
            f"(the rows are listed in {parts}/*/rejected.jsonl)"
        )


def write_rejected(parts: Sequence[Part], verdicts: np.ndarray, path: Path) -> None:
    """List rejected rows with file, number, reason and beginning, and documents that have the id of another by name."""
    start = 0
    with path.open("wb") as out:
        for part in parts:
            with (part.path / "rejected.jsonl").open("rb") as rows:
                shutil.copyfileobj(rows, out)
            same_id = np.flatnonzero(verdicts[start : start + len(part)] == SAME_ID)
            start += len(part)
            if len(same_id):
                names = part.documents()
                for number in same_id.tolist():
                    row = {"file": part.about["shard"], "reason": REASONS[SAME_ID], "name": names[number][0]}
                    out.write(orjson.dumps(row) + b"\n")
