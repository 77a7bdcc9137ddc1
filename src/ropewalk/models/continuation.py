"""Greedy decoding after a prompt, and the likelihood of given continuations."""

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ropewalk.models.head import logits_of
from ropewalk.models.layerwise import is_layerwise, layerwise_states
from ropewalk.models.prefill import FillingLayer, chunks, kv_cache, states_after


class ReadPrompt:
    """A prompt that was read once: its KV cache, from which every method continues, and the logits after it.

    Args:
        ids: token ids of the prompt.
        room: number of tokens in the longest continuation.
        chunk: largest number of prompt tokens in a forward pass.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, ids: list[int], *, room: int, chunk: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._cache = kv_cache(model, len(ids) + room)
        rows = torch.tensor([ids], device=self._device)
        for states in chunks(model, rows, self._cache, chunk=chunk):
            last = states[:, -1:]
        self._logits = logits_of(model, last)

    @property
    def is_nan(self) -> bool:
        """Whether the logits after the prompt contain NaN."""
        return bool(self._logits.isnan().any())

    @torch.no_grad()
    def greedy(self, tokens: int, *, stop: int | None = None) -> Generator[int]:
        """Decode at most ``tokens`` tokens greedily, ending before ``stop`` where it comes earlier.

        Each token is decoded when the iterator is advanced. No other method may be called before it ends or is closed.
        """
        cache, logits = self._cache_to_extend(), self._logits
        try:
            for place in range(tokens):
                best = int(logits[0, -1].argmax())
                if best == stop:
                    break
                yield best
                if place + 1 < tokens:
                    logits = self._logits_after([best], cache)
        finally:
            self._crop(cache)

    def log_likelihood(self, ids: Sequence[int]) -> float:
        """Log-probability in nats of the tokens ``ids`` after the prompt."""
        return Likelihood.of(self.logits_before(ids), ids).log_likelihood

    @torch.no_grad()
    def logits_before(self, ids: Sequence[int]) -> Tensor:
        """Logits (len(ids), vocabulary) that predict each of ``ids`` after the prompt."""
        logits = self._logits
        if len(ids) > 1:
            cache = self._cache_to_extend()
            logits = torch.cat([logits, self._logits_after(ids[:-1], cache)], dim=1)
            self._crop(cache)
        return logits[0]

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self._device)

    def _logits_after(self, ids: Sequence[int], cache: Cache) -> Tensor:
        return logits_of(self._model, states_after(self._model, self._row(ids), cache))

    def _cache_to_extend(self) -> Cache:
        """The prompt's cache, or a copy where it cannot be cropped afterwards (a sliding window drops old tokens)."""
        self._length = self._cache.get_seq_length()
        fills = all(isinstance(layer, FillingLayer) for layer in self._cache.layers)
        return self._cache if fills else copy.deepcopy(self._cache)

    def _crop(self, cache: Cache) -> None:
        if cache is self._cache:
            cache.crop(self._length - cache.get_seq_length())


@dataclass(frozen=True)
class Likelihood:
    """How a model predicts a given continuation of a prompt."""

    log_likelihood: float
    """Log-probability of all its tokens, in nats."""
    is_greedy: bool
    """Whether each token is the likeliest after those before it, so that greedy decoding would write them."""

    @classmethod
    def of(cls, logits: Tensor, ids: Sequence[int]) -> "Likelihood":
        """From the logits (len(ids), vocabulary) that predict each token."""
        targets = torch.tensor(list(ids), device=logits.device)
        chosen = logits.float().log_softmax(-1).gather(-1, targets[:, None])
        return cls(float(chosen.double().sum()), bool((logits.argmax(-1) == targets).all()))


@torch.no_grad()
def forced_likelihoods(
    model: PreTrainedModel, ids: Sequence[int], continuations: Sequence[Sequence[int]], *, chunk: int
) -> list[Likelihood]:
    """How ``model`` predicts each continuation of the prompt ``ids``, which is read once.

    Layer by layer where the model allows it, so that no KV cache of all layers is needed.

    Args:
        chunk: largest number of prompt tokens in a forward pass.
    """
    if not is_layerwise(model):
        read = ReadPrompt(model, list(ids), room=max(map(len, continuations)), chunk=chunk)
        return [Likelihood.of(read.logits_before(tokens), tokens) for tokens in continuations]
    device = next(model.parameters()).device
    endings = [torch.tensor([list(tokens[:-1])], device=device) for tokens in continuations if len(tokens) > 1]
    states = layerwise_states(model, torch.tensor([list(ids)], device=device), chunk=chunk, endings=endings)
    for _ in range(-(-len(ids) // chunk)):
        last = next(states)[:, -1:]
    likelihoods = []
    for tokens in continuations:
        states_before = torch.cat((last, next(states)), dim=1) if len(tokens) > 1 else last
        likelihoods.append(Likelihood.of(logits_of(model, states_before)[0], tokens))
    return likelihoods
