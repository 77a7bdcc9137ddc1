"""Factors files: rescale factors with where they come from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ropewalk.rope import RopeScaling, switch_from_json
from ropewalk.search.history import SearchResult

Provenance = dict[str, Any]
Entry = tuple[int, RopeScaling, Provenance | None]
"""The length up to which a scaling is for, the scaling, and where it comes from if the file says so."""


def provenance(result: SearchResult, *, search: str, commit: str) -> Provenance:
    """Method, model, data, protocol, seed, budget and commit of a search; ``search`` is its name in conf/search."""
    trials = [row for row in result.rows if row["phase"] == "evolution"]
    return {
        "method": search,
        **result.record,
        "budget": result.budget,
        "trials": len(trials),
        "gradient_steps": sum(row["phase"] == "gradient" for row in result.rows),
        "forward_tokens": result.forward_tokens,
        "search_loss": result.loss,
        "commit": commit,
    }


def factors_json(scaling: RopeScaling, origin: Provenance, *, shorter: Sequence[RopeScaling] = ()) -> str:
    """Text that `RopeScaling.from_json` reads; ``shorter`` are those found on the way to it, for shorter lengths."""
    more = {"shorter": [asdict(one) for one in shorter]} if shorter else {}
    return json.dumps({**asdict(scaling), **more, "provenance": origin}, indent=2) + "\n"


def factors_entry(text: str) -> Entry:
    """What `factors_json`'s text holds; raises ValueError as `RopeScaling.from_json`."""
    scaling = RopeScaling.from_json(text)
    return scaling.target_length, scaling, json.loads(text).get("provenance")


def switch_json(entries: Sequence[Entry]) -> str:
    """Text that `ropewalk.rope.switch_from_json` reads; the lengths must rise."""
    made = [
        {"up_to_length": up_to, "scaling": asdict(scaling), "provenance": origin} for up_to, scaling, origin in entries
    ]
    return json.dumps({"switch": made}, indent=2) + "\n"


def switch_entries(text: str) -> list[Entry]:
    """What `switch_json`'s text holds; raises ValueError as `ropewalk.rope.switch_from_json`."""
    found = switch_from_json(text)
    origins = [entry.get("provenance") for entry in json.loads(text)["switch"]]
    return [(up_to, scaling, origin) for (up_to, scaling), origin in zip(found, origins, strict=True)]
