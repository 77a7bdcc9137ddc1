"""Perplexity against transformers' own loss, on the same tokens and under its own scaled models."""

import itertools
import math
from typing import Any

import pytest
import torch

from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.baselines import variants
from ropewalk.evaluate.perplexity import (
    DocumentSet,
    counted_tokens,
    document_losses,
    longest_length,
    perplexities,
    position_edges,
    sliding_losses,
    windows,
)
from ropewalk.rope import RopeScaling, rotary_shape
from ropewalk.rope.methods import baselines
from tiny_models import WINDOW, tiny_llama, tiny_rounding
from tolerances import relative_error

pytestmark = pytest.mark.numeric

LENGTHS = (32, WINDOW, 100, 256)
PLAIN = RopeScaling((1.0,) * 8, WINDOW, 256)


def documents(store: TokenStore, *, length: int = 256) -> DocumentSet:
    return DocumentSet.of("all", store, length=length, documents=None)


def transformers_perplexity(model: Any, rows: torch.Tensor) -> float:
    with torch.no_grad():
        return math.exp(model(rows, labels=rows).loss.item())


def same_loss(perplexity: float, expected: float, *, length: int) -> bool:
    """Whether rounding alone can explain how the losses of two perplexities differ."""
    return relative_error(math.log(perplexity), math.log(expected)) < tiny_rounding(length)


def test_perplexity_is_exp_of_transformers_own_loss(trained: Any, store: TokenStore) -> None:
    document_set = documents(store)
    by_length = perplexities(trained, PLAIN, document_set, [256])
    assert document_set.documents == 8
    assert same_loss(by_length[256], transformers_perplexity(trained, document_set.rows), length=256)


def test_all_lengths_of_one_pass_equal_separate_passes(trained: Any, store: TokenStore) -> None:
    document_set = documents(store)
    together = perplexities(trained, PLAIN, document_set, LENGTHS)
    for length in LENGTHS:
        assert same_loss(together[length], perplexities(trained, PLAIN, document_set, [length])[length], length=256)
        assert same_loss(together[length], transformers_perplexity(trained, document_set.rows[:, :length]), length=256)
    assert together[256] > 2 * together[WINDOW]


def test_many_documents_are_read_in_several_passes_to_the_same_figure(trained: Any, store: TokenStore) -> None:
    document_set = documents(store)
    whole = perplexities(trained, PLAIN, document_set, [256])
    parts = perplexities(trained, PLAIN, document_set, [256], chunk=256 * 3)
    assert parts.keys() == whole.keys()
    assert same_loss(parts[256], whole[256], length=256)


def test_long_documents_are_read_in_chunks_to_the_same_figures(trained: Any, store: TokenStore) -> None:
    document_set = documents(store, length=600)
    scaling = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.3), WINDOW, 600, n_hat=8, attention_factor=1.1)
    whole = document_losses(trained, scaling, document_set, [100, 600])
    parts = document_losses(trained, scaling, document_set, [100, 600], chunk=70)
    for length in (100, 600):
        assert same_loss(parts[length].perplexity, whole[length].perplexity, length=600)
        assert relative_error(parts[length].means, whole[length].means) < tiny_rounding(600)
        assert relative_error(parts[length].bins, whole[length].bins) < tiny_rounding(600)


def test_loss_by_position_is_that_of_the_positions(trained: Any, store: TokenStore) -> None:
    document_set = documents(store)
    edges = position_edges(256)
    assert edges == [0, 16, 24, 32, 48, 64, 96, 128, 192, 255]
    binned = document_losses(trained, PLAIN, document_set, [256])[256]
    with torch.no_grad():
        logits = trained(document_set.rows).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), document_set.rows[:, 1:], reduction="none")
    expected = torch.zeros(document_set.documents, len(edges) - 1)
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        expected[:, place] = losses[:, low:high].mean(1)
    assert relative_error(binned.bins, expected) < tiny_rounding(256)


@pytest.mark.parametrize(("tokens", "length", "stride"), [(256, 64, 16), (256, 64, 64), (250, 64, 48), (64, 64, 32)])
def test_windows_count_every_token_once_that_has_one_before_it(tokens: int, length: int, stride: int) -> None:
    made = windows(tokens, length, stride)
    counted = [place for _, end, first in made for place in range(first, end)]
    # A window that begins where the last one ended has nothing to predict its first token from.
    begins = {start for start, _, _ in made} if stride == length else {0}
    assert counted == [place for place in range(tokens) if place not in begins]
    assert counted_tokens(tokens, length, stride) == len(counted)
    assert all(end - start <= length for start, end, _ in made)
    # A stride's worth of tokens is new, so the others are context.
    assert all(first - start >= length - stride for start, _, first in made[1:])


@pytest.mark.parametrize("stride", [24, WINDOW])
def test_sliding_perplexity_is_that_of_transformers_guide(trained: Any, store: TokenStore, stride: int) -> None:
    """The loop of "Perplexity of fixed-length models", with transformers' own loss of each window."""
    document_set, length = documents(store), WINDOW
    expected = []
    for row in document_set.rows:
        total, count, previous = 0.0, 0, 0
        for begin in range(0, len(row), stride):
            end = min(begin + length, len(row))
            labels = row[begin:end].clone()
            labels[: -(end - previous)] = -100
            with torch.no_grad():
                loss = trained(row[None, begin:end], labels=labels[None]).loss.item()
            valid = int((labels[1:] != -100).sum())
            total, count, previous = total + loss * valid, count + valid, end
            if end == len(row):
                break
        expected.append(total / count)
    losses = sliding_losses(trained, PLAIN, document_set, length, stride=stride)
    assert relative_error(losses.means, expected) < tiny_rounding(length)
    chunked = sliding_losses(trained, PLAIN, document_set, length, stride=stride, chunk=40)
    assert relative_error(chunked.means, expected) < tiny_rounding(length)
    with pytest.raises(ValueError, match="stride must lie between 1 and the window of 64 tokens, found 65"):
        sliding_losses(trained, PLAIN, document_set, length, stride=65)


def test_perplexity_is_transformers_own_under_its_own_longrope(trained: Any, store: TokenStore) -> None:
    factors = (1.0, 1.1, 1.3, 1.7, 2.2, 3.0, 3.9, 4.4)
    reference = tiny_llama(
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 8,
            "long_factor": list(factors),
            "attention_factor": 1.15,
            "original_max_position_embeddings": WINDOW,
        },
    )
    reference.load_state_dict(trained.state_dict())
    document_set = documents(store)
    expected = transformers_perplexity(reference, document_set.rows)
    scaling = RopeScaling(factors, WINDOW, 256, attention_factor=1.15)
    assert same_loss(perplexities(trained, scaling, document_set, [256])[256], expected, length=256)
    assert same_loss(perplexities(trained, scaling, document_set, [256], chunk=50)[256], expected, length=256)


@pytest.mark.parametrize("length", [100, 256])
@pytest.mark.parametrize("method", baselines())
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
    document_set = documents(store, length=length)
    candidates = variants(method, rotary_shape(trained), length=length, target=256)
    assert len(candidates) >= {"none": 1, "ntk": 2, "dynamic_ntk": 2}.get(method, 1)
    for variant in candidates:
        if variant.label in by_label:
            parameters = {**rope, **by_label[variant.label]}
        elif method == "ntk":
            scale = float(variant.label.split("=")[1])
            parameters = {"rope_type": "default", "rope_theta": 10_000.0 * scale ** (16 / 14)}
        elif method == "abf":
            parameters = {"rope_type": "default", "rope_theta": 10_000.0 * float(variant.label.split("x")[1])}
        else:
            kind = {"pi": "linear", "yarn": "yarn"}.get(method, "longrope")
            parameters = {**rope, "rope_type": kind, "factor": variant.scaling.ratio}
            if kind != "linear":
                parameters["original_max_position_embeddings"] = WINDOW
            if kind == "longrope" or "t=" in variant.label:
                parameters["attention_factor"] = variant.scaling.attention_factor
            if kind == "longrope":
                # Which it has no name for, and so the factors themselves, at every length.
                parameters["short_factor"] = parameters["long_factor"] = list(variant.scaling.factors)
        reference = tiny_llama(rope_parameters=parameters)
        reference.load_state_dict(trained.state_dict())
        expected = transformers_perplexity(reference, document_set.rows)
        measured = perplexities(trained, variant.scaling, document_set, [length])[length]
        assert same_loss(measured, expected, length=length), variant.label


def test_a_model_that_emits_nan_has_infinite_perplexity_from_there_on_alone(trained: Any, store: TokenStore) -> None:
    """The weights of a token that a document holds late are no numbers: shorter lengths have their figures."""
    document_set = documents(store)
    model = tiny_llama()
    model.load_state_dict(trained.state_dict())
    broken = document_set.rows.clone()
    broken[1, 200] = 2  # which no document holds
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = math.nan
    by_length = document_losses(model, PLAIN, DocumentSet("all", broken), [WINDOW, 256])
    assert same_loss(
        by_length[WINDOW].perplexity, perplexities(trained, PLAIN, document_set, [WINDOW])[WINDOW], length=256
    )
    assert (by_length[WINDOW].nan_documents, by_length[256].nan_documents) == (0, 1)
    assert by_length[256].perplexity == math.inf


def test_a_document_set_holds_the_first_that_are_long_enough(store: TokenStore) -> None:
    assert DocumentSet.of("long", store, length=600, documents=None).documents == 2
    assert torch.equal(DocumentSet.of("all", store, length=256, documents=3).rows, documents(store).rows[:3])


def test_too_few_or_too_short_documents_are_refused_with_the_lengths_that_can_be_read(store: TokenStore) -> None:
    with pytest.raises(ValueError, match=r"2 documents of at least 599 tokens, 3 are needed; lengths up to 301 can be"):
        DocumentSet.of("long", store, length=600, documents=3)
    with pytest.raises(ValueError, match=r"0 documents of at least 799 tokens, 1 are needed; lengths up to 701 can be"):
        DocumentSet.of("long", store, length=800, documents=None)
    for documents_, reach in ((3, 301), (1, 701)):
        assert longest_length(store, documents=documents_) == reach
        assert DocumentSet.of("all", store, length=reach, documents=documents_).documents == documents_
    assert longest_length(store, documents=9) == 0
