"""A checkpoint that came with a scaling is extended from there, by every stage; or from plain RoPE where asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.models.base import describe, load_model, own_scaling, own_switch, own_window, start_of, window_before
from ropewalk.rope import RopeScaling, extend, methods
from tiny_models import WINDOW, tiny_llama, tiny_phi3, token_rows

FOUR = {"factor": 4.0, "original_max_position_embeddings": WINDOW}
LONG = [1.0, 1.5, 3.0, 5.0]
CHECKPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "yarn": (tiny_llama, {"rope_type": "yarn", **FOUR}),
    "linear": (tiny_llama, {"rope_type": "linear", "factor": 4.0}),
    "llama3": (tiny_llama, {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **FOUR}),
    "longrope": (
        tiny_phi3,
        {
            "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": LONG,
            "partial_rotary_factor": 0.5, "original_max_position_embeddings": WINDOW,
        },
    ),
}  # fmt: skip


def saved(kind: str, folder: Path) -> str:
    build, rope = CHECKPOINTS[kind]
    stated = WINDOW if kind == "linear" else 4 * WINDOW
    build(rope_parameters={"rope_theta": 10_000.0, **rope}, max_position_embeddings=stated).save_pretrained(folder)
    return str(folder)


def described(path: str, **options: Any) -> dict[str, Any]:
    found = describe(load_model(path), name="own", path=path, original_length=None, **options)
    # As the stage writes it and the later ones read it.
    base: dict[str, Any] = json.loads(json.dumps(found.to_dict()))
    return base


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_scaling_of_a_checkpoint_is_where_the_road_starts(tmp_path: Path, kind: str) -> None:
    path = saved(kind, tmp_path)
    base, model, ids = described(path), load_model(path), token_rows(2 * WINDOW)
    own = own_scaling(base)
    assert own is not None
    assert (own.original_length, own_window(base)) == (WINDOW, 4 * WINDOW)
    assert base["original_length"] == WINDOW
    assert window_before(path, start="checkpoint", original_length=None) == 4 * WINDOW
    assert len(own_switch(base)) == (2 if kind == "longrope" else 1)
    with torch.no_grad():
        before = model(ids).logits
        torch.testing.assert_close(extend(model, own)(ids).logits, before, atol=1e-4, rtol=1e-4)


def test_it_starts_from_plain_rope_where_asked_and_where_a_checkpoint_has_no_scaling(tmp_path: Path) -> None:
    path = saved("yarn", tmp_path / "yarn")
    base = described(path, start="plain")
    assert own_scaling(base) is None
    assert own_window(base) == WINDOW
    assert window_before(path, start="plain", original_length=None) == WINDOW
    tiny_llama().save_pretrained(tmp_path / "plain")
    assert set(described(str(tmp_path / "plain"))) == set(base)
    assert not {"start", "window"} & set(base)
    # Dynamic NTK comes after training: the weights know plain RoPE only.
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    tiny_llama(rope_parameters=dynamic).save_pretrained(tmp_path / "dynamic")
    assert own_scaling(described(str(tmp_path / "dynamic"))) is None


def test_a_window_that_contradicts_the_checkpoints_scaling_is_refused(tmp_path: Path) -> None:
    path = saved("yarn", tmp_path)
    assert start_of(path, start="checkpoint", original_length=WINDOW)
    with pytest.raises(ValueError, match=r"model\.original_length is 100, but .* yarn scaling starts from 64 tokens"):
        start_of(path, start="checkpoint", original_length=100)
    assert window_before(path, start="plain", original_length=100) == 100


def test_a_model_given_by_its_path_alone_is_called_by_its_folder(tmp_path: Path) -> None:
    path = saved("linear", tmp_path / "my-model")
    assert describe(load_model(path), name="hf", path=path, original_length=None).name == "my-model"
    assert described(path)["name"] == "own"


def test_an_unknown_scaling_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved("linear", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "perpetual"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown kind of scaling 'perpetual'.*model\.start=plain"):
        start_of(path, start="checkpoint", original_length=None)


def test_llama_3s_window_is_what_its_config_says_whatever_its_ratio(tmp_path: Path) -> None:
    path = saved("llama3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16 * WINDOW}))
    ((up_to, scaling),) = start_of(path, start="checkpoint", original_length=None)
    expected = methods.llama3(rotary_dim=16, base=1e4, original_length=WINDOW, target_length=4 * WINDOW)
    assert up_to == scaling.target_length == 16 * WINDOW
    assert scaling.factors == expected.factors


def test_what_is_found_multiplies_the_checkpoints_factors(tmp_path: Path) -> None:
    own = own_scaling(described(saved("longrope", tmp_path)))
    assert own is not None
    both = own.then(RopeScaling((1.0, 1.0, 2.0, 2.0), 4 * WINDOW, 8 * WINDOW, attention_factor=1.3))
    assert both.factors == (1.0, 1.5, 6.0, 10.0)
    assert (both.original_length, both.target_length, both.attention_factor) == (WINDOW, 8 * WINDOW, 1.3)
