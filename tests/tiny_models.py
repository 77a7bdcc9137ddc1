"""Tiny random models of several architectures, each with a window of 64 tokens, and a tokenizer of bytes."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ropewalk.models.base import BaseModel
from tolerances import rounding

WINDOW = 64
"""max_position_embeddings of every tiny model, in tokens."""
VOCABULARY = 96

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}


def tiny_rounding(length: int) -> float:
    """Relative error that rounding may leave in the logits and losses of a tiny model on rows of ``length`` tokens.

    The way to a loss leads through three projections of 64 summands, one of 96, scores of 16 and attention over
    ``length`` tokens in each of two layers, then through the output matrix and the softmax over the vocabulary. The
    fastest rotary pair turns by ``length`` radians, which a rounded frequency misses by that many times eps.
    """
    layers, hidden, intermediate, head_dim = 2, 64, 96, 16
    summands = layers * (3 * hidden + intermediate + head_dim + length) + hidden + VOCABULARY
    return rounding(summands) + length * torch.finfo(torch.float32).eps


def _rope(base: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base, **more}


def _made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def tiny_base(**changes: Any) -> BaseModel:
    """What the stage base says of the walker, with other sizes; ``changes`` are made to it."""
    sizes = {"original_length": WINDOW, "rotary_dim": 16, "rope_theta": 10_000.0, "parameters": 1, "vocab_size": 96}
    return BaseModel(**{"name": "walker", "path": "models/walker", "weights_sha256": "", **sizes, **changes})


def tiny_llama(**changes: Any) -> Any:
    """Grouped-query attention, 8 rotary pairs; ``changes`` go to its config."""
    values = {**_SIZES, "num_key_value_heads": 2, "rope_parameters": _rope(10_000.0), **changes}
    return _made(lambda: LlamaForCausalLM(LlamaConfig(**values)))


def tiny_mistral(**changes: Any) -> Any:
    values = {**_SIZES, "num_key_value_heads": 2, "sliding_window": None, "rope_parameters": _rope(1e6), **changes}
    return _made(lambda: MistralForCausalLM(MistralConfig(**values)))


def tiny_qwen2(**changes: Any) -> Any:
    values = {**_SIZES, "num_key_value_heads": 2, "rope_parameters": _rope(1e6), **changes}
    return _made(lambda: Qwen2ForCausalLM(Qwen2Config(**values)))


def tiny_qwen3(**changes: Any) -> Any:
    """A head dimension that is not hidden size / heads: 16 rotary pairs."""
    values = {**_SIZES, "num_key_value_heads": 2, "head_dim": 32, "rope_parameters": _rope(1e6), **changes}
    return _made(lambda: Qwen3ForCausalLM(Qwen3Config(**values)))


def tiny_phi3(**changes: Any) -> Any:
    """Partial rotary: half of a head's dimensions, 4 rotary pairs."""
    values = {
        **_SIZES,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": WINDOW,
        "rope_parameters": _rope(10_000.0, partial_rotary_factor=0.5),
        **changes,
    }
    return _made(lambda: Phi3ForCausalLM(Phi3Config(**values)))


def tiny_gemma(**changes: Any) -> Any:
    """Norms that add one to their weights, embeddings scaled by the root of their size, output tied to them."""
    values = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16, "rope_parameters": _rope(10_000.0), **changes}
    return _made(lambda: GemmaForCausalLM(GemmaConfig(**values)))


def tiny_gpt_neox(**changes: Any) -> Any:
    """Partial rotary: a quarter of a head's dimensions, 2 rotary pairs."""
    values = {**_SIZES, "rope_parameters": _rope(10_000.0, partial_rotary_factor=0.25), **changes}
    return _made(lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**values)))


CLASS_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
"""Sizes that the config of nearly every class takes, with weights large enough for a wrong rotation to be seen."""


def tiny_of(model_type: str, **changes: Any) -> Any:
    """The model of any model_type of transformers, in these sizes and with the class's own rotary table."""
    config = AutoConfig.for_model(model_type, **{**_SIZES, "num_key_value_heads": 2, "head_dim": 16, **changes})
    return _made(lambda: AutoModelForCausalLM.from_config(config))


def tiny_gpt2() -> Any:
    """A model with learned positions, so without RoPE."""
    return _made(
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=WINDOW, n_embd=32, n_layer=1, n_head=2))
    )


ROPE_MODELS: dict[str, Callable[..., Any]] = {
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "phi3": tiny_phi3,
    "gpt_neox": tiny_gpt_neox,
}
"""Factories of every tiny model that `ropewalk.rope.extend` takes."""


def learned(model: Any, rows: torch.Tensor, count: int, *, steps: int) -> Any:
    """``model`` after some steps of learning the last ``count`` tokens of ``rows`` by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = model(rows).logits[:, -count - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -count:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def loss_rounding(model: Any, tokens: int, *, backward: bool = False) -> float:
    """Relative error that float32 may leave in the mean loss of ``tokens`` tokens, with ``backward`` in its gradient.

    A layer adds up the hidden dimensions three times (queries and keys, the output of attention, the first matrix of
    the feed-forward part), those of a head, the tokens that are attended to and the inner dimensions of the
    feed-forward part; the output matrix and its softmax follow. The backward pass goes the same way again.
    """
    config = model.config
    layer = 3 * config.hidden_size + config.hidden_size // config.num_attention_heads + config.intermediate_size
    forward = config.num_hidden_layers * (layer + tokens) + config.hidden_size + config.vocab_size + tokens
    return rounding(2 * forward if backward else forward)


def token_rows(length: int, rows: int = 2) -> torch.Tensor:
    """(rows, length) random token ids, the same on every call."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def byte_tokenizer(**special: str | None) -> Any:
    """Every byte a token, without merges: 256 of them, <s> as 256 and </s> as 257, or the ``special`` tokens given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Callable[..., Any] = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, **(special or {"bos_token": "<s>", "eos_token": "</s>"}))


def odd_digit_tokenizer() -> Any:
    """Bytes, and some pairs and triples of digits: "12345" is 12, 345, "51234" is 5, 12, 34; " 1" is a token too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("3", "4"), ("34", "5"), ("7", "8"), ("9", "0"), ("Ġ", "1"), ("s", "Ġ")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Callable[..., Any] = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
