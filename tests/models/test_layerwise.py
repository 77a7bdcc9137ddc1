"""Long inputs layer by layer: the losses of one pass, in the memory of hidden states and of one layer's keys."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from ropewalk.config import FitnessConfig
from ropewalk.costs.activations import ActivationTable
from ropewalk.evaluate.passkey import passkey_accuracy, passkey_prompts
from ropewalk.models import layerwise
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.models.continuation import ReadPrompt, forced_likelihoods
from ropewalk.models.layerwise import is_layerwise, layerwise_states, long_states
from ropewalk.models.loss import hidden_states, long_token_losses, token_losses
from ropewalk.models.prefill import chunks, kv_cache
from ropewalk.rope import LengthSwitch, RopeScaling, extend, methods, rotary_shape
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.token_weights import weighted_rows
from tiny_models import ROPE_MODELS, tiny_llama, tiny_mistral, tiny_of, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric
SMALL_DISK = "8k"

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
KINDS: dict[str, Callable[[], Any]] = {
    **ROPE_MODELS,
    "sliding windows": lambda: tiny_mistral(sliding_window=24),
    "recurrent layers": lambda: tiny_of("bamba", **MAMBA, attn_layer_indices=[1]),
    "two kinds of attention": lambda: tiny_of(
        "gemma3_text", layer_types=["sliding_attention", "full_attention"], sliding_window=24
    ),
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    """Under rising factors, with start tokens inside the second chunk and an attention factor."""
    model = KINDS[request.param]()
    pairs = rotary_shape(model).rotary_dim // 2
    factors = tuple(1 + 3 * pair / pairs for pair in range(pairs))
    return extend(model, RopeScaling(factors, 64, 256, n_hat=40, attention_factor=1.2))


@torch.no_grad()
def test_states_are_those_of_one_pass(model: Any) -> None:
    rows = token_rows(90)
    assert is_layerwise(model)
    states = list(layerwise_states(model, rows, chunk=37))
    assert [part.shape[1] for part in states] == [37, 37, 16]
    assert relative_error(torch.cat(states, dim=1), hidden_states(model, rows)) < tiny_rounding(90)


@torch.no_grad()
def test_continuations_are_as_likely_as_with_a_cache_of_all_layers(model: Any) -> None:
    ids = token_rows(60, rows=1)[0].tolist()
    read = ReadPrompt(model, ids, room=5, chunk=25)
    greedy = list(read.greedy(5))
    continuations = [greedy, token_rows(4, rows=1)[0].tolist(), greedy[:1], [greedy[0], greedy[1] ^ 1]]
    likelihoods = forced_likelihoods(model, ids, continuations, chunk=25)
    assert [likelihood.is_greedy for likelihood in likelihoods] == [True, False, True, False]
    for likelihood, tokens in zip(likelihoods, continuations, strict=True):
        expected = torch.tensor(read.log_likelihood(tokens))
        assert relative_error(torch.tensor(likelihood.log_likelihood), expected) < tiny_rounding(65)


@torch.no_grad()
def test_hidden_states_may_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_llama(), token_rows(90)
    monkeypatch.setattr(layerwise, "_FREE_SHARE", 0.0)
    monkeypatch.setattr(layerwise.tempfile, "tempdir", str(tmp_path))
    whole = token_losses(model, rows)
    parts = long_states(model, rows, chunk=37)
    next(parts)
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    # Nothing would be left of the file if the process were killed now.
    assert any(str(tmp_path) in name and name.rstrip().endswith("(deleted)") for name in mapped)
    assert not list(tmp_path.iterdir())
    parts.close()
    assert relative_error(long_token_losses(model, rows, chunk=37), whole) < tiny_rounding(90)


@torch.no_grad()
def test_hidden_states_that_fit_nowhere_are_refused_in_a_line(small_disk: Path, monkeypatch: Any) -> None:
    model, rows = tiny_llama(), token_rows(90)
    monkeypatch.setattr(layerwise, "_FREE_SHARE", 0.0)
    monkeypatch.setattr(layerwise.tempfile, "tempdir", str(small_disk))
    with pytest.raises(MemoryError, match=rf"hidden states .* free and 0\.0 GiB in {small_disk}; set TMPDIR"):
        long_token_losses(model, rows, chunk=37)
    assert not list(small_disk.iterdir())


def test_a_model_whose_layers_share_keys_is_read_with_a_cache_of_all_layers() -> None:
    model, rows = tiny_llama(num_hidden_layers=3), token_rows(60)

    class Sharing(type(model.model.layers[2].self_attn)):  # type: ignore[misc]
        def forward(self, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
            states, weights = super().forward(*args, cache=cache, **kwargs)
            return states + (0.0 if cache is None else cache.layers[1].values.mean()), weights

    model.model.layers[2].self_attn.__class__ = Sharing
    with torch.no_grad():
        assert not is_layerwise(model)
        (*_, states) = long_states(model, rows, chunk=20)
        cache = kv_cache(model, 60)
        (*_, expected) = chunks(model, rows, cache, chunk=20)
    assert torch.equal(states, expected)


@torch.no_grad()
def test_an_abandoned_reading_leaves_the_model_as_it_was() -> None:
    model, rows = tiny_llama(), token_rows(60)
    before = token_losses(model, rows)
    states = layerwise_states(model, rows, chunk=20)
    next(states)
    # Also while it has not ended.
    assert torch.equal(token_losses(model, rows), before)
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    states.close()


def test_the_memory_of_more_layers_is_no_more() -> None:
    """Counted over the tensors that the reading makes: hidden states, and the keys and values of one layer."""
    tokens, chunk, peaks = 8192, 512, {}
    for layers in (2, 8):
        config = LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=256,
        )  # fmt: skip
        work = {"kind": "read", "dtype": "float32", "mixed": False, "recompute": False, "chunk": chunk}
        table = ActivationTable(config)
        peaks[layers] = [table(tokens=count, **work) for count in (tokens, 2 * tokens)]
    assert peaks[8] == peaks[2]
    # Of a token: 64 numbers of hidden states, 32 of keys, 32 of values, and its id.
    low, high = peaks[8]
    assert 4 * (64 + 32 + 32) <= (high - low) / tokens <= 4 * (64 + 32 + 32) + 16


def test_a_search_reads_documents_that_are_longer_than_a_pass_in_chunks() -> None:
    model, rows = tiny_llama(), token_rows(150, rows=3)
    scaling = RopeScaling((1.0,) * (rotary_shape(model).rotary_dim // 2), 64, 256)
    fitness = FitnessConfig("copied", text_weight=0.5, copied_weight=0.5)
    weights = weighted_rows(rows, fitness, tokenizer=None, window=32, seed=(0,)).weights
    for part in (Part(rows), Part(rows, 1.0, weights)):
        whole, chunked = (Fitness(model, (part,), batch_tokens=tokens) for tokens in (150, 64))
        assert relative_error(torch.tensor(chunked(scaling)), torch.tensor(whole(scaling))) < tiny_rounding(150)


def test_keys_in_prompts_longer_than_a_chunk_are_found_as_greedy_decoding_finds_them() -> None:
    walker = str(Path(__file__).resolve().parents[2] / "models" / "walker")
    model, tokenizer = load_model(walker), load_tokenizer(walker)
    prompts = passkey_prompts(tokenizer, length=400, depths=4, trials=8, seed=0)
    switch = LengthSwitch(((400, methods.yarn(**vars(rotary_shape(model)), target_length=400)),))
    whole, forced = (passkey_accuracy(model, tokenizer, switch, prompts, chunk=chunk) for chunk in (400, 128))
    assert forced == whole
    assert sum(row["correct"] for row in whole) > 4


def test_memory_is_pinned_where_the_power_of_two_that_torch_takes_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(available=64 * 2**30)
    monkeypatch.setattr(layerwise.psutil, "virtual_memory", lambda: free)
    sizes = (16 * 2**30 + 1, 32 * 2**30, 32 * 2**30 + 1)
    assert [layerwise._can_be_pinned(size) for size in sizes] == [True, True, False]
