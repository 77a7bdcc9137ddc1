"""What follows a prompt that was read once: greedy decoding, and how likely a given text is, from one KV cache."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ropewalk.models.prefill import FillingLayer, chunks, kv_cache, states_after


class ReadPrompt:
    """A prompt's KV cache and the logits after its last token; every call goes on from the prompt's end.

    Args:
        ids: token ids of the prompt.
        room: tokens that any continuation has, at most.
        chunk: prompt tokens in a forward pass, at most.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, ids: list[int], *, room: int, chunk: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._cache = kv_cache(model, len(ids) + room)
        rows = torch.tensor([ids], device=self._device)
        for states in chunks(model, rows, self._cache, chunk=chunk):
            last = states[:, -1:]
        self._logits = self._output(last)

    @property
    def is_nan(self) -> bool:
        """Whether the model gave no numbers here."""
        return bool(self._logits.isnan().any())

    @torch.no_grad()
    def greedy(self, tokens: int, *, stop: int | None = None) -> list[int]:
        """The most likely tokens one after another, up to ``tokens`` of them or up to ``stop``, which is left out."""
        cache, found = self._begun(), list[int]()
        logits = self._logits
        while len(found) < tokens:
            best = int(logits[0, -1].argmax())
            if best == stop:
                break
            found.append(best)
            if len(found) < tokens:
                logits = self._output(states_after(self._model, self._row([best]), cache))
        self._cut_back(cache)
        return found

    @torch.no_grad()
    def log_likelihood(self, ids: list[int]) -> float:
        """Log probability in nats of the tokens ``ids`` after the prompt."""
        logits = self._logits
        if len(ids) > 1:
            cache = self._begun()
            logits = torch.cat([logits, self._output(states_after(self._model, self._row(ids[:-1]), cache))], dim=1)
            self._cut_back(cache)
        chosen = logits[0].float().log_softmax(-1).gather(-1, self._row(ids).T)
        return float(chosen.double().sum())

    def _row(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self._device)

    def _output(self, states: Tensor) -> Tensor:
        output: Any = self._model.get_output_embeddings()
        logits: Tensor = output(states)
        return logits

    def _begun(self) -> Cache:
        """The prompt's cache, or a copy of one that cannot be cut back (a sliding window forgets)."""
        self._length = self._cache.get_seq_length()
        fills = all(isinstance(layer, FillingLayer) for layer in self._cache.layers)
        return self._cache if fills else copy.deepcopy(self._cache)

    def _cut_back(self, cache: Cache) -> None:
        if cache is self._cache:
            cache.crop(self._length - cache.get_seq_length())
