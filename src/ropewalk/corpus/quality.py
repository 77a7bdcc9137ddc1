"""Quality rules: bounds on the signals that RedPajama-V2 publishes with its documents.

The published rules lie in conf/corpus/quality/ (Gopher's, in full and as in the README of the data set, and C4's). The
bounds of a signal are the lowest and the highest value that a document may have, or null.
"""

from typing import Any

Rules = dict[str, list[float | None]]

_LINE_SHARES = "rps_lines_"
"""Prefix of signals that have a value for each line, which count by their mean over all lines of the document."""


def value_of(signal: str, signals: dict[str, Any]) -> float | None:
    """Value of a signal for a whole document, None if it has none.

    A signal is a list of ``[start, end, value]``: one for the document, or one for each line if it is ``rps_lines_*``.
    """
    spans = signals.get(signal)
    if not isinstance(spans, list) or not spans:
        return None
    values = [span[2] for span in spans if isinstance(span, list) and len(span) == 3 and span[2] is not None]
    if not values:
        return None
    if not signal.startswith(_LINE_SHARES):
        return float(values[0])
    lines = value_of("ccnet_nlines", signals) or len(spans)
    return float(sum(values)) / lines


def broken_rule(signals: dict[str, Any], rules: Rules) -> str | None:
    """The first rule that a document breaks, as the reason for dropping it; a missing value breaks none."""
    for signal, (lowest, highest) in rules.items():
        value = value_of(signal, signals)
        if value is None:
            continue
        if lowest is not None and value < lowest:
            return f"{signal} below {lowest:g}"
        if highest is not None and value > highest:
            return f"{signal} above {highest:g}"
    return None
