"""Factors files and base.json keep their form, and give back what was written to them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ropewalk.models.base import BaseModel
from ropewalk.models.factors import FactorsByLength, FactorsEntry, SearchedFactors
from ropewalk.rope import LengthSwitch, RopeScaling
from tiny_models import tiny_base

SHORT = RopeScaling((1.0, 1.5), 256, 512)
LONG = RopeScaling((1.0, 4.0), 256, 1024, 2, 1.1, "learned")
ORIGIN = {"method": "hybrid", "trials": 12}
VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "scaling": (LONG, LONG.to_dict()),
    "searched": (SearchedFactors(LONG, ORIGIN), {**LONG.to_dict(), "provenance": ORIGIN}),
    "with shorter": (
        SearchedFactors(LONG, ORIGIN, (SHORT,)),
        {**LONG.to_dict(), "shorter": [SHORT.to_dict()], "provenance": ORIGIN},
    ),
    "by length": (
        FactorsByLength((FactorsEntry(512, SHORT), FactorsEntry(1024, LONG, ORIGIN))),
        {
            "switch": [
                {"up_to_length": 512, "scaling": SHORT.to_dict(), "provenance": None},
                {"up_to_length": 1024, "scaling": LONG.to_dict(), "provenance": ORIGIN},
            ]
        },
    ),
    "base": (
        replace(tiny_base(), start_switch=LengthSwitch(((512, SHORT),))),
        {
            "name": "walker",
            "path": "models/walker",
            "weights_sha256": "",
            "original_length": 64,
            "rotary_dim": 16,
            "rope_theta": 10_000.0,
            "parameters": 1,
            "vocab_size": 96,
            "dtype": "float32",
            "window": 512,
            "start": {"switch": [{"up_to_length": 512, "scaling": SHORT.to_dict()}]},
        },
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_file_has_the_same_bytes_whenever_it_is_written(name: str, tmp_path: Path) -> None:
    value, expected = VALUES[name]
    assert value.to_json() == json.dumps(expected, indent=2) + "\n"
    (tmp_path / "value.json").write_text(value.to_json())
    assert type(value).read(tmp_path / "value.json") == value


def test_factors_files_are_read_as_scalings_too() -> None:
    searched, by_length = VALUES["with shorter"][0], VALUES["by length"][0]
    assert RopeScaling.from_json(searched.to_json()) == LONG
    assert searched.by_length == {512: SHORT, 1024: LONG}
    assert LengthSwitch.from_json(by_length.to_json()) == by_length.switch


def test_factors_whose_lengths_do_not_rise_are_refused() -> None:
    falling = FactorsByLength((FactorsEntry(1024, LONG), FactorsEntry(512, SHORT)))
    with pytest.raises(ValueError, match="must rise"):
        falling.to_json()


@pytest.mark.parametrize("kind", [BaseModel, SearchedFactors, FactorsByLength])
@pytest.mark.parametrize("text", ["", "3", "{}", '{"name": 1}'])
def test_a_file_of_something_else_is_named(kind: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=rf"other\.json: not a {kind.__name__} in JSON"):
        kind.read(tmp_path / "other.json")
