"""Fitness: how well the model reads the search documents under a candidate."""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.config import FitnessConfig
from ropewalk.models.loss import long_token_losses
from ropewalk.rope import RopeScaling, extend
from ropewalk.search.token_weights import needle_rows

NO_LOSS = "the model emitted NaN or infinite losses"


@dataclass(frozen=True)
class Part:
    """Documents cut to one length."""

    rows: Tensor
    """(documents, length) token ids, BOS first."""
    weight: float = 1.0
    """Weight of the part's loss in the fitness; the weights of all parts sum to 1."""
    token_weights: Tensor | None = None
    """Weight of each token's loss, as `ropewalk.search.token_weights.WeightedRows` has it."""


@dataclass(frozen=True)
class Evaluation:
    """Result and cost of reading the documents under a candidate."""

    loss: float | None
    """Weighted loss in nats; None where the reading was stopped or the model emitted NaN."""
    forward_tokens: int
    """Tokens read."""
    blocks: dict[int, float]
    """Weighted loss of each block that was read, times the number of blocks, so that the mean over all blocks is the
    loss; a block has the same number for every candidate."""
    stopped: bool = False


@dataclass(frozen=True)
class _Pass:
    part: int
    rows: tuple[int, ...]
    length: int
    """How many of the first tokens of each row are read."""
    first_block: int
    counts: bool
    """Whether the pass is part of the loss, or only an early look at a shorter length."""


@dataclass(frozen=True)
class Fitness:
    """Weighted loss of the tokens of all parts.

    Args:
        first: scaling that candidates are applied on top of (second search), or None.
        batch_tokens: maximum number of tokens in a forward pass; longer documents are read in chunks.
        blocks: pieces that a document's losses are cut into for comparisons in pairs (racing); 0 for none.
        shorter: fractions of the length to which a race reads every document first.
        seed: seed of the order in which a race reads the documents.
        protocol: the fitness in words, for records.
    """

    model: Any
    parts: tuple[Part, ...]
    first: RopeScaling | None = None
    batch_tokens: int = 16_384
    blocks: int = 0
    shorter: tuple[float, ...] = ()
    seed: int = 0
    protocol: str = "perplexity, one pass over the first tokens of each document"

    @property
    def forward_tokens(self) -> int:
        """Tokens that a whole evaluation reads, without early looks."""
        return sum(part.rows.numel() for part in self.parts)

    @property
    def race_tokens(self) -> int:
        """Tokens that a race reads for a candidate that it does not stop, with early looks."""
        return sum(step.length * len(step.rows) for step in self._passes(racing=self.blocks > 0))

    @property
    def data_hash(self) -> str:
        """Hash of the token ids and of all weights."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.rows.numpy().tobytes())
            digest.update(b"" if part.token_weights is None else part.token_weights.numpy().tobytes())
            digest.update(str((tuple(part.rows.shape), part.weight)).encode())
        return digest.hexdigest()

    def composed(self, candidate: RopeScaling) -> RopeScaling:
        return self.first.then(candidate) if self.first else candidate

    def __call__(self, candidate: RopeScaling) -> float:
        """Loss in nats; infinite when the model emits NaN."""
        loss = self.evaluate(candidate).loss
        return math.inf if loss is None else loss

    @torch.no_grad()
    def evaluate(
        self, candidate: RopeScaling, *, hopeless: Callable[[dict[int, float]], bool] | None = None
    ) -> Evaluation:
        """Read every part, or stop early once ``hopeless`` is true for the blocks read so far."""
        extend(self.model, self.composed(candidate))
        device = next(self.model.parameters()).device
        blocks: dict[int, float] = {}
        total, tokens = 0.0, 0
        for step in self._passes(racing=hopeless is not None):
            part = self.parts[step.part]
            whole = part.rows.shape[1]
            losses = part.weight * self._losses(part, step, device)
            tokens += len(step.rows) * step.length
            if step.counts:
                total += losses.sum().item()
            if not torch.isfinite(losses).all():
                return Evaluation(None, tokens, blocks)
            if hopeless is None:
                continue
            # A shorter look at a document is scaled as if it were the whole document.
            scale = self.blocks * sum(len(part.rows) for part in self.parts) * whole / step.length
            for place, row in enumerate(losses):
                for offset, block in enumerate(row.tensor_split(self.blocks)):
                    if block.numel():
                        blocks[step.first_block + place * self.blocks + offset] = scale * block.sum().item()
            if hopeless(blocks):
                return Evaluation(None, tokens, blocks, stopped=True)
        return Evaluation(total, tokens, blocks)

    def _losses(self, part: Part, step: _Pass, device: torch.device) -> Tensor:
        """Losses times their weights, of shape (rows, length - 1) in float64."""
        rows = part.rows[list(step.rows), : step.length].to(device)
        read = partial(long_token_losses, self.model, rows, chunk=self.batch_tokens)
        if part.token_weights is None:
            documents, length = part.rows.shape
            return read().double() / (documents * (length - 1))
        weights = part.token_weights[list(step.rows), : step.length]
        return read(chosen=weights.to(device) > 0).double() * weights[:, 1:]

    def _passes(self, *, racing: bool) -> Iterator[_Pass]:
        """Whole documents in large batches; in a race one by one in shuffled order, shorter lengths first."""
        if not racing:
            for index, part in enumerate(self.parts):
                documents, length = part.rows.shape
                for rows in torch.arange(documents).split(max(1, self.batch_tokens // length)):
                    yield _Pass(index, tuple(rows.tolist()), length, 0, True)
            return
        documents_of_parts = [(index, row) for index, part in enumerate(self.parts) for row in range(len(part.rows))]
        count = len(documents_of_parts)
        order = np.random.default_rng(self.seed).permutation(count).tolist()
        for rung, share in enumerate((*self.shorter, 1.0)):
            for number in order:
                index, row = documents_of_parts[number]
                whole = self.parts[index].rows.shape[1]
                first_block = (rung * count + number) * self.blocks
                yield _Pass(index, (row,), max(2, round(share * whole)), first_block, share == 1.0)


def answerable(
    fitness: FitnessConfig,
    model: Any,
    scaling: RopeScaling,
    rows: Tensor,
    tokenizer: Any,
    *,
    seed: int,
    label: str | None,
) -> FitnessConfig:
    """``fitness``, without needles where the model does not repeat facts that a text within its window states.

    The answers of such a model are guesses under any factors, so they would only add noise. A fitness that consists of
    needles alone is returned unchanged.

    Args:
        scaling: what the model was trained under.
        rows: (rows, length) token ids of text within its window, BOS first.
        label: beginning of the message that needles are left out; None for no message.
    """
    if not (fitness.needles and (fitness.text_weight or fitness.copied_weight)):
        return fitness
    losses = []
    for stated in (True, False):
        with_needles, _, answers = needle_rows(rows, tokenizer, needles=1, seed=(seed,), stated=stated)
        if not answers.any():
            return fitness
        losses.append(Fitness(model, (Part(with_needles, 1.0, answers / answers.sum()),))(scaling))
    if losses[0] < losses[1] / 2:
        return fitness
    if label is not None:
        print(
            f"{label}: needles do not count, because the model does not repeat facts within its window "
            f"({losses[0]:.2f} nats of loss, {losses[1]:.2f} where they are not stated)",
            file=sys.stderr,
        )
    return replace(fitness, needles=0, needle_weight=0.0)
