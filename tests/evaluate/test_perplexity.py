"""Perplexity against transformers' own loss, on the same tokens and under its own scaled models."""

import math
from typing import Any

import pytest
import torch

from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.baselines import METHODS, variants
from ropewalk.evaluate.perplexity import DocumentSet, perplexities
from ropewalk.rope import RopeScaling, rotary_shape
from tiny_models import WINDOW, tiny_llama

LENGTHS = (32, WINDOW, 100, 256)
PLAIN = RopeScaling((1.0,) * 8, WINDOW, 256)


def documents(store: TokenStore, *, length: int = 256) -> DocumentSet:
    return DocumentSet.of("all", store, length=length, documents=None)


def transformers_perplexity(model: Any, rows: torch.Tensor) -> float:
    with torch.no_grad():
        return math.exp(model(rows, labels=rows).loss.item())


def test_perplexity_is_exp_of_transformers_own_loss(trained: Any, store: TokenStore) -> None:
    own = documents(store)
    found = perplexities(trained, PLAIN, own, [256])
    assert own.documents == 8
    assert found[256] == pytest.approx(transformers_perplexity(trained, own.rows), rel=1e-5)


def test_all_lengths_of_one_pass_equal_separate_passes(trained: Any, store: TokenStore) -> None:
    own = documents(store)
    together = perplexities(trained, PLAIN, own, LENGTHS)
    for length in LENGTHS:
        assert together[length] == pytest.approx(perplexities(trained, PLAIN, own, [length])[length], rel=1e-5)
        assert together[length] == pytest.approx(transformers_perplexity(trained, own.rows[:, :length]), rel=1e-5)
    assert together[256] > 2 * together[WINDOW]


def test_many_documents_are_read_in_several_passes_to_the_same_figure(
    trained: Any, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = documents(store)
    whole = perplexities(trained, PLAIN, own, [256])
    monkeypatch.setattr("ropewalk.evaluate.perplexity._TOKENS_AT_ONCE", 256 * 3)
    assert perplexities(trained, PLAIN, own, [256]) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("length", [100, 256])
@pytest.mark.parametrize("method", METHODS)
def test_every_variant_is_transformers_own_model_with_that_scaling(
    trained: Any, store: TokenStore, method: str, length: int
) -> None:
    """Read by a fresh model of transformers that has the method in its config."""
    rope = {"rope_theta": 10_000.0}
    by_label = {
        "plain": {"rope_type": "default"},
        "factor=1": {"rope_type": "dynamic", "factor": 1.0},
        "factor=4": {"rope_type": "dynamic", "factor": 4.0},
        "factor=1.5625": {"rope_type": "dynamic", "factor": 100 / WINDOW},
    }
    own = documents(store, length=length)
    found = variants(method, rotary_shape(trained), length=length, target=256)
    assert len(found) >= {"none": 1, "ntk": 2, "dynamic_ntk": 2}.get(method, 1)
    for variant in found:
        if variant.label in by_label:
            parameters = {**rope, **by_label[variant.label]}
        elif method == "ntk":
            scale = float(variant.label.split("=")[1])
            parameters = {"rope_type": "default", "rope_theta": 10_000.0 * scale ** (16 / 14)}
        elif method == "abf":
            parameters = {"rope_type": "default", "rope_theta": 10_000.0 * float(variant.label.split("x")[1])}
        else:
            kind = {"pi": "linear", "yarn": "yarn"}[method]
            parameters = {**rope, "rope_type": kind, "factor": float(variant.label.split("=")[1])}
            if kind == "yarn":
                parameters["original_max_position_embeddings"] = WINDOW
        reference = tiny_llama(rope_parameters=parameters)
        reference.load_state_dict(trained.state_dict())
        expected = transformers_perplexity(reference, own.rows)
        measured = perplexities(trained, variant.scaling, own, [length])[length]
        assert measured == pytest.approx(expected, rel=1e-4), variant.label


def test_a_model_that_emits_nan_has_infinite_perplexity(store: TokenStore) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert perplexities(model, PLAIN, documents(store), [WINDOW]) == {WINDOW: math.inf}


def test_a_document_set_holds_the_first_that_are_long_enough(store: TokenStore) -> None:
    assert DocumentSet.of("long", store, length=600, documents=None).documents == 2
    assert torch.equal(DocumentSet.of("all", store, length=256, documents=3).rows, documents(store).rows[:3])
    with pytest.raises(ValueError, match="holds 2 documents of at least 599 tokens, 3 are needed"):
        DocumentSet.of("long", store, length=600, documents=3)
