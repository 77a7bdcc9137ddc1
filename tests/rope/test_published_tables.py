"""The 15 factor tables that LongRoPE's authors published load, and only into models of their size."""

import math
import re
from pathlib import Path

import pytest

from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary, rotary_shape
from tiny_models import tiny_llama

pytestmark = pytest.mark.numeric

NAMES = [
    *(f"{length}_la2_128k" for length in ("ft", "4k", "8k", "16k", "32k", "256k", "512k", "1024k", "2048k")),
    *(f"{length}_mis_128k" for length in ("ft", "4k", "8k", "512k", "1024k", "2048k")),
]
ORIGINAL = {"la2": 4096, "mis": 8192}


def load(shared: Path, name: str) -> RopeScaling:
    length, model, _ = name.split("_")
    target = 131_072 if length == "ft" else 1024 * int(length.removesuffix("k"))
    original = ORIGINAL[model]
    return RopeScaling.from_csv(
        shared / "data" / "factors" / f"{name}.csv", original_length=original, target_length=max(target, original)
    )


def test_the_15_tables_are_there(shared: Path) -> None:
    assert sorted(path.stem for path in (shared / "data" / "factors").glob("*.csv")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_a_published_table_loads(shared: Path, name: str) -> None:
    scaling = load(shared, name)
    first = (shared / "data" / "factors" / f"{name}.csv").read_text().splitlines()[0].split(",")
    assert scaling.factors == tuple(map(float, first))
    assert scaling.rotary_dim == 128
    assert scaling.factors[0] >= 1
    assert scaling.factors[-1] > 1
    if scaling.ratio > 1:
        expected = math.sqrt(1 + math.log(scaling.ratio) / math.log(scaling.original_length))
        assert scaling.attention_factor == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_table_goes_into_a_model_of_its_size(shared: Path, name: str) -> None:
    model = tiny_llama(hidden_size=256, num_attention_heads=2, head_dim=128, num_hidden_layers=1)
    scaling = load(shared, name)
    rotary = find_rotary(extend(model, scaling))[1]
    assert isinstance(rotary, RotaryEmbedding)
    assert rotary.factors.tolist() == pytest.approx(scaling.factors)


def test_a_published_table_is_refused_by_a_model_of_another_size(shared: Path) -> None:
    model = tiny_llama()
    message = re.escape(
        "found 64 rescale factors, which is for 128 rotary dimensions, "
        f"but the model has {rotary_shape(model).rotary_dim}; use factors made for this model"
    )
    with pytest.raises(ValueError, match=message):
        extend(model, load(shared, "ft_la2_128k"))
