"""Fitness: how well the model reads the search documents under a candidate.

The documents can hide needles: facts that their end repeats. LongRoPE2 (§3.1) judges factors by the loss on these
answers alone, since most tokens of a text can be told from the few before them, whatever the factors.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.corpus.recall import draw_facts
from ropewalk.models.loss import chosen_losses, token_losses
from ropewalk.rope import RopeScaling, extend

NO_LOSS = "the model emitted NaN or infinite losses"
_STATEMENT = "\nThe {thing} is {value}.\n"
_QUESTION = "\nOnce more, the {thing} is"


@dataclass(frozen=True)
class Part:
    """Documents cut to one length."""

    rows: Tensor
    """(documents, length) token ids, BOS first."""
    weight: float = 1.0
    """Weight of the part's mean loss in the fitness; the weights of all parts sum to 1."""
    asked: Tensor | None = None
    """(documents, length) whether a token's loss counts; all but the first by default."""


@dataclass(frozen=True)
class Evaluation:
    """Result and cost of reading the documents under a candidate."""

    loss: float | None
    """Weighted mean loss in nats; None where the reading was stopped or the model emitted NaN."""
    forward_tokens: int
    """Tokens read."""
    blocks: dict[int, float]
    """Mean loss of each block that was read, times the weight of its part and the number of parts, so that the mean
    over all blocks is about the loss; a block has the same number for every candidate."""
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
    """Weighted mean loss over the tokens that count in all parts.

    Args:
        first: scaling that candidates are applied on top of (second search), or None.
        batch_tokens: maximum number of tokens in a forward pass.
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
        """Hash of the token ids, of which of them count, and of the weights."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part.rows.numpy().tobytes())
            digest.update(b"" if part.asked is None else part.asked.numpy().tobytes())
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
        totals, counts = [0.0] * len(self.parts), [0] * len(self.parts)
        blocks: dict[int, float] = {}
        tokens = 0
        for step in self._passes(racing=hopeless is not None):
            part = self.parts[step.part]
            rows = part.rows[list(step.rows), : step.length].to(device)
            asked = None if part.asked is None else part.asked[list(step.rows), : step.length].to(device)
            losses = self._losses(rows, asked)
            tokens += rows.numel()
            values = torch.cat(losses)
            if step.counts:
                totals[step.part] += values.sum().item()
                counts[step.part] += values.numel()
            if not torch.isfinite(values).all():
                return Evaluation(None, tokens, blocks)
            if hopeless is None:
                continue
            for place, row in enumerate(losses):
                for offset, block in enumerate(row.tensor_split(self.blocks)):
                    if block.numel():
                        number = step.first_block + place * self.blocks + offset
                        blocks[number] = part.weight * len(self.parts) * block.mean().item()
            if hopeless(blocks):
                return Evaluation(None, tokens, blocks, stopped=True)
        loss = sum(part.weight * total / count for part, total, count in zip(self.parts, totals, counts, strict=True))
        return Evaluation(loss, tokens, blocks)

    def _losses(self, rows: Tensor, asked: Tensor | None) -> list[Tensor]:
        """The losses that count, one tensor of float64 per row."""
        if asked is None:
            return list(token_losses(self.model, rows).double())
        losses = chosen_losses(self.model, rows, asked).double()
        return list(losses.split(asked[:, 1:].sum(1).tolist()))

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


def needle_rows(rows: Tensor, tokenizer: Any, *, needles: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows as long as ``rows`` (documents, length), whose last tokens give way to facts and questions about them.

    The facts stand at evenly spread depths of the first half, so that every answer lies at least half of the row back.

    Returns:
        (rows, asked): asked (documents, length) is true on the tokens of the answers.

    Raises:
        ValueError: the facts and questions take more than half of a row.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    documents, length = rows.shape
    with_needles, asked = rows.clone(), torch.zeros_like(rows, dtype=torch.bool)
    for document in range(documents):
        rng = np.random.default_rng((seed, document))
        facts = list(draw_facts(rng, needles))
        statements = [encode(_STATEMENT.format(**fact)) for fact in facts]
        ends: list[int] = []
        answers: list[bool] = []
        for fact in rng.permutation(np.asarray(facts, dtype=object)):
            question = encode(_QUESTION.format(**fact))
            whole = encode(_QUESTION.format(**fact) + f" {fact['value']}")
            # Where the value's first token is merged with the question's last, the common beginning is the question.
            start = next((i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b), len(question))
            ends += whole
            answers += [index >= start for index in range(len(whole))]
        room = length - len(ends) - sum(map(len, statements))
        if room < length // 2:
            raise ValueError(
                f"search.fitness.needles: {needles} facts and their questions take {length - room} of {length} tokens; "
                "lower it or search for a longer target"
            )
        text = rows[document, :room].tolist()
        row: list[int] = []
        done = 0
        for number, statement in enumerate(statements):
            depth = max(1, round(number / needles * length / 2))
            row += text[done:depth] + statement
            done = depth
        row += text[done:]
        with_needles[document] = torch.tensor(row + ends)
        asked[document, len(row) :] = torch.tensor(answers)
    return with_needles, asked
