"""RopeScaling as a value: JSON, composition, refusals, and switching by length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.rope import LengthSwitch, RopeScaling, methods


@st.composite
def scalings(draw: st.DrawFn, pairs: int | None = None) -> RopeScaling:
    count = pairs or draw(st.integers(1, 64))
    original = draw(st.integers(2, 8192))
    return RopeScaling(
        tuple(draw(st.lists(st.floats(0.01, 1e4), min_size=count, max_size=count))),
        original,
        original * draw(st.integers(1, 64)),
        draw(st.integers(0, 256)),
        draw(st.floats(0.5, 3.0)),
        draw(st.sampled_from(sorted(methods.METHODS))),
    )


@given(scalings())
def test_json_gives_the_same_value_back(scaling: RopeScaling) -> None:
    back = RopeScaling.from_json(scaling.to_json())
    assert back == scaling == RopeScaling.from_dict(scaling.to_dict())
    assert json.loads(scaling.to_json()) == scaling.to_dict()
    assert back.method == scaling.method
    assert hash(back) == hash(scaling)


@given(scalings(pairs=8), scalings(pairs=8))
def test_then_multiplies_factors_and_takes_the_rest_from_the_second(first: RopeScaling, second: RopeScaling) -> None:
    if second.target_length < first.original_length:
        return
    both = first.then(second)
    assert both.factors == tuple(a * b for a, b in zip(first.factors, second.factors, strict=True))
    assert (both.n_hat, both.attention_factor) == (second.n_hat, second.attention_factor)
    assert (both.original_length, both.target_length) == (first.original_length, second.target_length)


@given(scalings(pairs=4), scalings(pairs=4), scalings(pairs=4))
def test_then_is_associative(a: RopeScaling, b: RopeScaling, c: RopeScaling) -> None:
    if min(b.target_length, c.target_length) < max(a.original_length, b.original_length):
        return
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert left.factors == pytest.approx(right.factors)
    assert (left.original_length, left.target_length, left.n_hat) == (
        right.original_length,
        right.target_length,
        right.n_hat,
    )


@given(scalings())
def test_plain_rope_first_changes_only_the_original_length(second: RopeScaling) -> None:
    plain = RopeScaling((1.0,) * len(second.factors), second.original_length, second.original_length)
    assert plain.then(second) == second


def test_pi_twice_is_pi_by_the_product() -> None:
    sizes: dict[str, Any] = {"rotary_dim": 64, "base": 10_000.0}
    first = methods.pi(**sizes, original_length=256, target_length=2048)
    second = methods.pi(**sizes, original_length=2048, target_length=16_384)
    assert first.then(second) == methods.pi(**sizes, original_length=256, target_length=16_384)


def test_then_refuses_another_rotary_dimension() -> None:
    with pytest.raises(ValueError, match="found 3 rescale factors"):
        RopeScaling((1.0, 1.0), 256, 512).then(RopeScaling((1.0, 1.0, 1.0), 256, 512))


def test_numpy_values_become_plain_ones() -> None:
    array: Any = np.ones(2, np.float32)
    scaling = RopeScaling(array, np.int64(256), np.int64(512), np.int64(4), np.float64(1.1))  # type: ignore[arg-type]
    assert RopeScaling.from_json(scaling.to_json()) == scaling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factors": ()}, "at least one factor"),
        ({"factors": (1.0, 0.0)}, "must be positive"),
        ({"factors": (1.0, float("nan"))}, "must be positive"),
        ({"factors": (1.0, float("inf"))}, "must be positive"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"attention_factor": float("nan")}, "attention_factor"),
        ({"n_hat": -1}, "n_hat"),
        ({"n_hat": 1.5}, "n_hat must be a whole number"),
        ({"target_length": 255}, "target_length must not be below original_length"),
        ({"original_length": 0}, "target_length must not be below original_length"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**{"factors": (1.0, 2.0), "original_length": 256, "target_length": 512, **values})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"factors": [1.0]}',
        '{"factors": [null], "original_length": 1, "target_length": 1}',
        '{"factors": "abc", "original_length": 1, "target_length": 1}',
        '{"factors": [1.0], "original_length": "a", "target_length": 1}',
        '{"factors": [1.0], "original_length": Infinity, "target_length": Infinity}',
    ],
)
def test_other_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as raised:
        RopeScaling.from_json(text)
    assert "\n" not in str(raised.value)


def test_a_file_that_holds_no_scaling_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"factors": [1.0]}')
    with pytest.raises(ValueError, match=r"mine\.json: not a RopeScaling in JSON"):
        RopeScaling.read(tmp_path / "mine.json")


def test_unknown_keys_are_ignored() -> None:
    scaling = RopeScaling((1.0, 2.0), 256, 512)
    text = json.dumps({**json.loads(scaling.to_json()), "comment": "later versions may add keys"})
    assert RopeScaling.from_json(text) == scaling


SWITCH = LengthSwitch(
    (
        (256, RopeScaling((1.0, 1.0), 256, 256)),
        (2048, RopeScaling((1.0, 8.0), 256, 2048, 2, 1.2)),
        (16_384, RopeScaling((1.0, 64.0), 256, 16_384)),
    )
)


def test_a_switch_gives_the_same_value_back_from_json() -> None:
    assert LengthSwitch.from_json(SWITCH.to_json()) == SWITCH
    assert LengthSwitch.from_dict(SWITCH.to_dict()) == SWITCH


@pytest.mark.parametrize(("length", "chosen"), [(1, 0), (256, 0), (257, 1), (2048, 1), (2049, 2), (16_384, 2)])
def test_the_first_scaling_made_for_the_length_is_chosen(length: int, chosen: int) -> None:
    assert SWITCH.for_length(length) is SWITCH.scalings[chosen]
    assert SWITCH.entry_for(length) is SWITCH.entries[chosen]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"switch": []}', '{"switch": [{}]}', '{"switch": 3}'])
def test_other_json_is_no_switch(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a LengthSwitch|lengths of a switch"):
        LengthSwitch.from_json(text)


def test_a_switch_whose_lengths_do_not_rise_is_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        LengthSwitch(SWITCH.entries[::-1])
    with pytest.raises(ValueError, match="must rise"):
        LengthSwitch(())


def test_one_row_of_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1, 1.5, 2\n\n")
    scaling = RopeScaling.from_csv(tmp_path / "table.csv", original_length=256, target_length=512, n_hat=4)
    assert scaling.factors == (1.0, 1.5, 2.0)
    assert scaling.n_hat == 4


def test_factors_that_differ_by_layer_are_averaged_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2\n1,4\n")
    with pytest.warns(UserWarning, match="different factors per layer"):
        scaling = RopeScaling.from_csv(tmp_path / "table.csv", original_length=256, target_length=512)
    assert scaling.factors == (1.0, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows of equal length"),
        ("1,2\n1\n", r"rows of equal length, found lengths \[1, 2\]"),
        ("1,x\n", "not a table of comma-separated numbers"),
        ("1,\n", "not a table of comma-separated numbers"),
        ("1,-2\n", "must be positive"),
        ("1,nan\n", "must be positive"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        RopeScaling.from_csv(path, original_length=256, target_length=512)
    assert str(path) in str(raised.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        RopeScaling.from_csv(tmp_path / "absent.csv", original_length=256, target_length=512)
