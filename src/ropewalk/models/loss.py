"""Next-token losses without the logits of a whole row: the model's head is applied to hidden states in chunks."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ropewalk.models.head import RECURRENT, TriedOnce, logits_of, plain_output, spread_ids, whole_states
from ropewalk.models.layerwise import long_states
from ropewalk.rope.windows import layer_types

_CHUNK_TOKENS, _CHUNK_LOGITS = 1024, 2**24
"""Largest numbers of tokens in one call of the head, and of logits where no gradient is needed."""


def hidden_states(model: PreTrainedModel, input_ids: Tensor, *, position_ids: Tensor | None = None) -> Tensor:
    """Output of the model before its head, of shape (batch, length, hidden).

    Args:
        position_ids: (batch, length); attention stays within documents, each of which begins where these are 0.

    Raises:
        ValueError: with position_ids, the model does not stay within documents.
    """
    options = {} if position_ids is None else {"position_ids": position_ids}
    if options and (recurrent := sorted(RECURRENT.intersection(layer_types(model.config)))):
        raise ValueError(
            f"{type(model).__name__} has layers of the type {recurrent[0]}, which go on from one document of a row to "
            "the next; set finetune.short_share=0"
        )
    if options and not _stays_within_documents(model):
        raise ValueError(
            f"{type(model).__name__} lets the documents of a row attend to each other; set finetune.short_share=0"
        )
    return whole_states(model, input_ids, **options)


@TriedOnce
def _stays_within_documents(model: PreTrainedModel) -> bool:
    """Whether a document's states are the same whatever precedes it in a row, tried on a short row the first time.

    gpt-oss makes its masks without positions, and DeepSeek-V4 compresses keys across documents.
    """
    ids = spread_ids(model, 16)
    ids = torch.stack((ids, torch.cat((ids[:8].flip(0), ids[8:]))))
    positions = torch.arange(8, device=ids.device).repeat(2).expand_as(ids)
    first, second = whole_states(model, ids, position_ids=positions)[:, 8:].float()
    return bool((first - second).norm() < 0.01 * first.norm())


def token_losses(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Loss in nats of every token but the first given those before it, of shape (batch, length - 1)."""
    return losses_of(model, hidden_states(model, rows)[:, :-1], rows[:, 1:], "none").view(rows.shape[0], -1)


def long_token_losses(model: PreTrainedModel, rows: Tensor, *, chunk: int, chosen: Tensor | None = None) -> Tensor:
    """The same as `token_losses`, moved to the CPU; rows of more than ``chunk`` tokens are read in chunks.

    Args:
        chosen: (batch, length), true for the tokens that the head is applied to; the others' losses are 0.
    """
    if rows.shape[1] <= chunk:
        parts: Iterable[Tensor] = [hidden_states(model, rows)[:, :-1]]
    else:
        parts = long_states(model, rows[:, :-1], chunk=chunk)
    losses, start = [], 1
    for states in parts:
        targets = rows[:, start : start + states.shape[1]]
        if chosen is None:
            losses.append(losses_of(model, states, targets, "none").view(targets.shape).cpu())
        else:
            is_chosen = chosen[:, start : start + states.shape[1]]
            part_losses = torch.zeros(targets.shape)
            if is_chosen.any():
                part_losses[is_chosen.cpu()] = (
                    losses_of(model, states[is_chosen][None], targets[is_chosen][None], "none").float().cpu()
                )
            losses.append(part_losses)
        start += states.shape[1]
    return torch.cat(losses, dim=1)


def mean_loss(model: PreTrainedModel, rows: Tensor, *, ignore: int = -100) -> Tensor:
    """Mean loss in nats over all tokens but the first of each row, and without a row's last where it is ``ignore``.

    The last token is an EOS where a document was cut, which cannot be predicted.
    """
    return mean_loss_of(model, hidden_states(model, rows), targets_of(rows, ignore=ignore))


def targets_of(rows: Tensor, *, ignore: int = -100) -> Tensor:
    """The tokens that `mean_loss` predicts, of shape (batch, length - 1), with -100 for those that it leaves out."""
    targets = rows[:, 1:].clone()
    targets[:, -1] = torch.where(targets[:, -1] == ignore, -100, targets[:, -1])
    return targets


def mean_loss_of(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats of ``targets`` (batch, length - 1) other than -100, from the output of `hidden_states`."""
    return losses_of(model, states[:, :-1], targets, "mean")


def _head_chunk(model: PreTrainedModel) -> int:
    """Tokens that the head is applied to at once.

    Fewer with a large vocabulary, but not in training, where each chunk adds to the gradient of the whole matrix.
    """
    if torch.is_grad_enabled():
        return _CHUNK_TOKENS
    vocabulary: int = model.config.get_text_config().vocab_size
    return max(1, min(_CHUNK_TOKENS, _CHUNK_LOGITS // vocabulary))


def losses_of(model: PreTrainedModel, states: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Losses in nats of ``targets`` (batch, length) from the hidden states that predict them; -100 is left out.

    Args:
        reduction: "none", "sum" or "mean", as in torch.
    """
    states, targets = states.flatten(0, 1), targets.flatten()
    with torch.autocast(states.device.type, enabled=False):
        output = plain_output(model)
        is_half = output is not None and output.weight.dtype.itemsize <= 2
        if output is None or (is_half and not torch.is_grad_enabled()):
            losses = _losses_by_class(model, states, targets)
        else:
            losses = F.linear_cross_entropy(
                states.to(output.weight.dtype),
                output.weight,
                targets,
                linear_bias=output.bias,
                # torch adds up losses in the dtype of the weights, and a sum in half precision stops growing early.
                reduction="none" if is_half else reduction,
                options=LinearCrossEntropyOptions(batch_chunk_size=_head_chunk(model), chunking_method=None),
            )
            if not is_half:
                return losses
            losses = losses.float()
    if reduction == "none":
        return losses
    return losses.sum() / (targets != -100).sum() if reduction == "mean" else losses.sum()


def _losses_by_class(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Losses (tokens,) of ``targets`` (tokens,) in float32, from the class's own logits.

    The backward pass computes the logits again, a chunk at a time.
    """

    def losses_of_chunk(states: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of(model, states[None])[0]
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")

    output: Any = model.get_output_embeddings()
    states = states if output is None else states.to(output.weight.dtype)
    chunk = _head_chunk(model)
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([losses_of_chunk(*part) for part in parts])
    return torch.cat([checkpoint(losses_of_chunk, *part, use_reentrant=False) for part in parts])
