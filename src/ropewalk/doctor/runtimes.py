"""What a runtime makes of a checkpoint: the loss of every token of a long row."""

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.models.loss import long_token_losses

TRANSFORMERS, LLAMA_CPP = "transformers", "llama_cpp"
PACKAGES = {TRANSFORMERS: "transformers", LLAMA_CPP: "llama-cpp-python"}
"""The name by which pip installs each runtime, by the name of its module."""
_WHOLE = 16_384
"""Longest row that is read at once, in tokens."""
_LLAMA_BATCH = 512


def installed() -> list[str]:
    """Names of the runtimes that can be imported."""
    return [name for name in PACKAGES if find_spec(name) is not None]


@torch.no_grad()
def model_losses(model: Any, ids: Sequence[int], *, window: int) -> Tensor:
    """Loss in nats of every token but the first, by the rotary module that a transformers model has.

    Rows of up to 16,384 tokens are read at once. Longer ones are read in chunks beyond the ``window``, since classes
    choose between two sets of factors by the last position of a forward pass.
    """
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    return long_token_losses(model, row, chunk=max(_WHOLE, window + 1))[0].float()


def llama_cpp_losses(file: Path, ids: Sequence[int]) -> Tensor:
    """The same for a GGUF file, by llama.cpp in a context of just these tokens; keys and values are kept in float32.

    The logits of a batch of 512 tokens are held at a time.

    Raises:
        ValueError: llama.cpp cannot load the file, or cannot compute with it.
    """
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    if model is None:
        raise ValueError(f"llama.cpp cannot load {file}; `llama-cli -m` says why")
    try:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = len(ids), _LLAMA_BATCH, _LLAMA_BATCH
        settings.n_seq_max = 1
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        context = llama_cpp.llama_init_from_model(model, settings)
        if context is None:
            raise ValueError(f"llama.cpp makes no context of {len(ids)} tokens for {file}; lower doctor.length")
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        try:
            return _llama_losses(llama_cpp, context, ids, size)
        finally:
            llama_cpp.llama_free(context)
    finally:
        llama_cpp.llama_model_free(model)


def _llama_losses(llama_cpp: Any, context: Any, ids: Sequence[int], size: int) -> Tensor:
    batch = llama_cpp.llama_batch_init(_LLAMA_BATCH, 0, 1)
    losses = []
    try:
        for start in range(0, len(ids) - 1, _LLAMA_BATCH):
            part = ids[start : min(start + _LLAMA_BATCH, len(ids) - 1)]
            batch.n_tokens = len(part)
            for place, token in enumerate(part):
                batch.token[place], batch.pos[place] = token, start + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
            if llama_cpp.llama_decode(context, batch) != 0:
                raise ValueError(f"llama.cpp stops at token {start:,}; lower doctor.length")
            values = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(len(part) * size,))
            logits = torch.from_numpy(values.reshape(len(part), size).copy())
            targets = torch.tensor(ids[start + 1 : start + 1 + len(part)])
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    finally:
        llama_cpp.llama_batch_free(batch)
    return torch.cat(losses)
