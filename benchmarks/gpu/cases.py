"""What `benchmarks/gpu/run.py` computes: each case on the device under test, and on the processor in float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, LlamaConfig
from transformers.integrations.sdpa_attention import repeat_kv

from ropewalk.costs.shape import build
from ropewalk.finetune.gathered import SlicedRows, Slices, documents_of, gathered_attention
from ropewalk.finetune.module import make_optimizer
from ropewalk.models.activation_checkpointing import checkpointed
from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.head import logits_of
from ropewalk.models.layerwise import is_layerwise, layerwise_states
from ropewalk.models.loss import hidden_states, long_token_losses, losses_of, mean_loss, token_losses
from ropewalk.models.prefill import Reading, chunks, kv_cache, reading, states_after
from ropewalk.rope import RopeScaling, current_scaling, extend, rotary_shape
from ropewalk.rope.query_scales import query_scales
from ropewalk.search.space import SearchSpace
from ropewalk.search.token_weights import WeightedRows
from ropewalk.search.warm_start import learn_scaling

CONTINUED = 8
"""Tokens that are generated and predicted after a prompt."""
_SHARPNESS = 1.0
"""Standard deviation of the numbers in queries and keys, so that each token attends to a few others."""


@dataclass(frozen=True)
class Shape:
    """A model of which a few layers are built, and the lengths that memory and time are measured at."""

    config: Any
    chunk: int
    """Tokens that are read at once where an input is read in chunks."""
    short: int
    """Tokens of the row that results are compared on."""
    read: int
    """Tokens of the row that is read for memory and time."""
    trained: int
    """The same for passes with a gradient."""
    reading: Reading = Reading.JOINED


def _llama(hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, **more: Any) -> Any:
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, max_position_embeddings=8192, pad_token_id=None,
        bos_token_id=None, eos_token_id=None, **more,
    )  # fmt: skip


def _soft_caps(hidden: int) -> Any:
    return Gemma2Config(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, vocab_size=512, sliding_window=128, max_position_embeddings=8192,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


SHAPES: dict[str, Callable[[], Shape]] = {
    "smollm2-135m": lambda: Shape(
        _llama(576, 1536, 4, 9, 3, 49_152, tie_word_embeddings=True), 2048, 1024, read=65_536, trained=16_384
    ),
    "llama-3.2-1b": lambda: Shape(
        _llama(2048, 8192, 3, 32, 8, 128_256, head_dim=64, tie_word_embeddings=True), 2048, 1024, 32_768, 8192
    ),
    # Its head has the vocabulary of LLaMA-2, so that a training step fits on a card of 24 GB.
    "llama-3-8b": lambda: Shape(_llama(4096, 14_336, 2, 32, 8, 32_000, head_dim=128), 2048, 512, 32_768, 4096),
    "soft-caps": lambda: Shape(_soft_caps(256), 256, 600, 4096, 1024, reading=Reading.CACHED),
}
TINY: dict[str, Callable[[], Shape]] = {
    "tiny": lambda: Shape(_llama(64, 128, 2, 4, 2, 256), 24, 64, read=96, trained=64),
    "tiny-soft-caps": lambda: Shape(_soft_caps(32), 24, 64, read=96, trained=64, reading=Reading.CACHED),
}


def reference(shape: Shape) -> Any:
    """The model on the processor in float32, with weights that bfloat16 holds too, under a scaling for twice 8,192."""
    torch.manual_seed(0)
    model = build(shape.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.normal_(0, _SHARPNESS / shape.config.hidden_size**0.5)
            weight.copy_(weight.bfloat16())
    pairs = rotary_shape(model).rotary_dim // 2
    factors = tuple(1 + pair / pairs for pair in range(pairs))
    return extend(model, RopeScaling(factors, 8192, 16_384, n_hat=4, attention_factor=1.1))


def row_of(model: Any, length: int) -> Tensor:
    """(1, length) token ids, the same on every device."""
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
    return ids.to(model.device)


Results = Callable[[Any, Tensor, int], list[Tensor]]
"""(model, rows, chunk) -> tensors that are compared one by one."""


@dataclass(frozen=True)
class Case:
    """Something that a device computes, beside the same on the processor."""

    results: Results
    expected: Results
    once: Results | None = None
    """What is run for memory and time; None to measure neither."""
    work: dict[str, Any] = field(default_factory=dict)
    """What the plan is told of it (`ropewalk.costs.work.Work`)."""
    dtype: str = "bfloat16"
    """dtype of the weights."""
    limit: float = 0.04
    """Largest relative error; what bfloat16 leaves on a processor is at most half of it."""


@torch.no_grad()
def whole(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    states = hidden_states(model, rows)
    return [states, logits_of(model, states[:, -4:]), token_losses(model, rows)]


@torch.no_grad()
def whole_losses(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    return [token_losses(model, rows)]


@torch.no_grad()
def in_chunks(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    states = torch.cat(list(chunks(model, rows, kv_cache(model, rows.shape[1]), chunk=chunk)), dim=1)
    return [states, logits_of(model, states[:, -4:]), *losses_in_chunks(model, rows, chunk)]


@torch.no_grad()
def losses_in_chunks(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    losses, start = [], 1
    for states in chunks(model, rows[:, :-1], kv_cache(model, rows.shape[1]), chunk=chunk):
        losses.append(losses_of(model, states, rows[:, start : start + states.shape[1]], "none"))
        start += states.shape[1]
    return [torch.cat(losses)[None]]


@torch.no_grad()
def by_layers(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    if not is_layerwise(model):
        raise ValueError("the model is not read layer by layer")
    states = torch.cat(list(layerwise_states(model, rows, chunk=chunk)), dim=1)
    return [states, logits_of(model, states[:, -4:]), *losses_by_layers(model, rows, chunk)]


@torch.no_grad()
def losses_by_layers(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    return [long_token_losses(model, rows, chunk=chunk)]


def with_states_in_memory(results: Results) -> Results:
    """The same where hidden states between layers find no room on the device."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        with patch("ropewalk.models.layerwise._place_for", return_value="memory"):
            return results(model, rows, chunk)

    return run


def under_query_scales(results: Results) -> Results:
    """The same with another scale of the queries of each head."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        scales = query_scales(model)
        table = torch.linspace(0.8, 1.2, scales.layers * scales.heads, device=model.device)
        scales.set(table.view(scales.layers, scales.heads))
        try:
            return results(model, rows, chunk)
        finally:
            scales.set(None)

    return run


@torch.no_grad()
def generated(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    """Logits that predict the row's last tokens: all at once, and one token after the other as they are generated."""
    prompt, ending = rows[:, :-CONTINUED], rows[:, -CONTINUED:]
    read = ReadPrompt(model, prompt[0].tolist(), room=CONTINUED, chunk=chunk)
    if len(list(read.greedy(CONTINUED))) != CONTINUED:
        raise ValueError("fewer tokens were generated than asked for")
    cache = kv_cache(model, rows.shape[1])
    *_, states = chunks(model, prompt, cache, chunk=chunk)
    single = [states[:, -1:], *(states_after(model, token, cache) for token in ending[:, :-1].split(1, dim=1))]
    return [read.logits_before(ending[0].tolist()), logits_of(model, torch.cat(single, dim=1))[0]]


@torch.no_grad()
def predicted(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
    logits = logits_of(model, hidden_states(model, rows)[:, -CONTINUED - 1 : -1])[0]
    return [logits, logits]


def learned(kept: str) -> Results:
    """Loss and gradients of a step of the gradient search; ``kept`` is search.activation_checkpointing."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        shape, states = rotary_shape(model), list[dict[str, Any]]()
        space = SearchSpace(shape.rotary_dim, shape.base, shape.original_length, 2 * shape.original_length, 4.0)
        steps = learn_scaling(
            model, space, lambda step: WeightedRows(rows), start=space.start(), steps=1, learning_rate=0.01,
            query_scales="head", activation_checkpointing=kept, keep=states.extend,
        )  # fmt: skip
        scaling = current_scaling(model)
        assert scaling is not None
        try:
            list(steps)
        finally:
            extend(model, scaling)
        loss, gradients = states[0]["loss"], states[0]["gradients"]
        return [torch.tensor(loss), *(torch.tensor(gradient).flatten() for gradient in gradients)]

    return run


def trained(kept: str) -> Results:
    """Loss of a training step and gradients of a few weights; ``kept`` is finetune.activation_checkpointing."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        device, layers = model.device, model.model.layers
        optimizer = make_optimizer("adamw_fused", [{"params": list(model.parameters()), "lr": 0.0}], weight_decay=0.0)
        mixed: AbstractContextManager[Any] = nullcontext()
        if kept != "none":
            mixed = torch.autocast(device.type, dtype=torch.bfloat16)
        model.train()
        with checkpointed(model, kept):
            with mixed:
                loss = mean_loss(model, rows)
            loss.backward()
        weights = [layers[0].self_attn.q_proj, layers[0].self_attn.v_proj, layers[-1].mlp.down_proj]
        results = [loss.detach().cpu(), *(part.weight.grad.to("cpu", copy=True) for part in weights)]
        optimizer.step()
        model.zero_grad()
        model.eval()
        if not all(bool(weight.isfinite().all()) for weight in layers[0].parameters()):
            raise ValueError("the optimizer left weights that are no numbers")
        return results

    return run


def shared(attention: str, *, documents: bool = False, window: int | None = None) -> Results:
    """Output and gradients of the attention of devices that share a row, on a single one; as `parallel.attention`."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        query, key, value = _queries_keys_values(model, rows)
        numbers = documents_of(_positions(rows)) if documents else None
        sliced = SlicedRows(Slices(0, 1, attention=attention), numbers)
        output, _ = gathered_attention(
            SimpleNamespace(), query, key, value, None, scaling=0.1, sliced=sliced, sliding_window=window
        )
        return _with_gradients(output, [query, key, value])

    return run


def masked(*, documents: bool = False, window: int | None = None) -> Results:
    """The same from a mask of all tokens."""

    def run(model: Any, rows: Tensor, chunk: int) -> list[Tensor]:
        parts, places = _queries_keys_values(model, rows), torch.arange(rows.shape[1])
        numbers = documents_of(_positions(rows))[0]
        mask = places <= places[:, None]
        if documents:
            mask &= numbers == numbers[:, None]
        if window is not None:
            mask &= places[:, None] - places < window
        query, key, value = parts
        groups = query.shape[1] // key.shape[1]
        output = F.scaled_dot_product_attention(
            query, repeat_kv(key, groups), repeat_kv(value, groups), attn_mask=mask, scale=0.1
        )
        return _with_gradients(output.transpose(1, 2), parts)

    return run


def _positions(rows: Tensor) -> Tensor:
    """Those of three documents of unequal lengths in each row."""
    length = rows.shape[1]
    sizes = (length // 4, length // 3, length - length // 4 - length // 3)
    return torch.cat([torch.arange(size, device=rows.device) for size in sizes]).expand_as(rows)


def _queries_keys_values(model: Any, rows: Tensor) -> list[Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(2)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    size = config.head_dim
    parts = [torch.randn(1, count, rows.shape[1], size, generator=generator).bfloat16() for count in heads]
    return [part.to(model.device, model.dtype).requires_grad_() for part in parts]


def _with_gradients(output: Tensor, parts: list[Tensor]) -> list[Tensor]:
    wish = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    return [output.detach(), *torch.autograd.grad(output, parts, wish.to(output.device, output.dtype))]


def cases_of(shape: Shape) -> dict[str, Case]:
    """The cases of a model by their names."""
    in_cache: dict[str, Any] = {"kind": "read", "chunk": shape.chunk, "generates": True}
    in_layers: dict[str, Any] = {"kind": "read", "chunk": shape.chunk}
    exact: dict[str, Any] = {"dtype": "float32", "limit": 2e-3}
    cases = {
        "whole": Case(whole, whole, whole_losses, {"kind": "read"}),
        "whole, float32": Case(whole, whole, whole_losses, {"kind": "read"}, **exact),
        "chunks": Case(in_chunks, whole, losses_in_chunks, in_cache),
        "chunks, float32": Case(in_chunks, whole, losses_in_chunks, in_cache, **exact),
        "generation": Case(generated, predicted),
    }
    if shape.reading is not Reading.JOINED:
        return cases
    cases |= {
        "layer by layer": Case(by_layers, whole, losses_by_layers, in_layers),
        "layer by layer, states in memory": Case(with_states_in_memory(by_layers), whole),
        "query scales": Case(under_query_scales(whole), under_query_scales(whole)),
    }
    factors: dict[str, Any] = {"dtype": "float32", "limit": 0.02}
    cases["gradient of factors, float32"] = Case(learned("none"), learned("none"), **factors)
    for kept in ("none", "full", "offload"):
        told = {"recompute": kept != "none", "offload": kept == "offload"}
        cases[f"gradient of factors, {kept}"] = Case(
            learned(kept), learned("none"), learned(kept), {"kind": "learn", **told}, limit=0.5
        )
        if kept != "none":
            cases[f"training step, {kept}"] = Case(
                trained(kept), trained("none"), trained(kept), {"kind": "train", "mixed": True, **told},
                dtype="float32", limit=0.1,
            )  # fmt: skip
    return cases | {
        "gathered keys": Case(shared("gathered"), masked()),
        "gathered keys, documents": Case(shared("gathered", documents=True), masked(documents=True)),
        "gathered keys, window": Case(shared("gathered", window=48), masked(window=48)),
        "gathered keys, float32": Case(shared("gathered"), masked(), **exact),
        "ring": Case(shared("ring"), masked()),
    }


def check_reading(model: Any, shape: Shape) -> None:
    """Raise ValueError where the model is read in chunks in another way than its class should be."""
    found = reading(model)
    if found is not shape.reading:
        raise ValueError(f"the model is read in the way {found.name}, not {shape.reading.name}")
