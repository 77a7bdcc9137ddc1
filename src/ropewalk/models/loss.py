"""Next-token losses without the logits of a whole row: hidden states meet the output matrix in chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from transformers import PreTrainedModel

from ropewalk.models.prefill import chunks, kv_cache

_CHUNK = LinearCrossEntropyOptions(batch_chunk_size=1024, chunking_method=None)


def hidden_states(model: PreTrainedModel, input_ids: Tensor, *, position_ids: Tensor | None = None) -> Tensor:
    """(rows, length, hidden) output of the model's body, before the output matrix.

    Args:
        position_ids: (rows, length); where they start again at 0, a document begins that attention does not leave.
    """
    more = {} if position_ids is None else {"position_ids": position_ids}
    states: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **more).last_hidden_state
    return states


def last_states(model: PreTrainedModel, input_ids: Tensor, count: int, *, chunk: int) -> Tensor:
    """(rows, count, hidden) states of the last ``count`` tokens; rows longer than ``chunk`` are read in chunks."""
    if input_ids.shape[1] <= chunk:
        return hidden_states(model, input_ids)[:, -count:]
    kept = input_ids.new_empty(0)
    for states in chunks(model, input_ids, kv_cache(model, input_ids.shape[1]), chunk=chunk):
        kept = states[:, -count:] if kept.numel() == 0 else torch.cat([kept, states], dim=1)[:, -count:]
    return kept


def token_losses(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Loss in nats of tokens 1 … length-1 of each row given all before: (rows, length - 1)."""
    return losses_of(model, hidden_states(model, rows)[:, :-1], rows[:, 1:], "none").view(rows.shape[0], -1)


def long_token_losses(model: PreTrainedModel, rows: Tensor, *, chunk: int) -> Tensor:
    """`token_losses` of rows that are read ``chunk`` tokens at a time with a KV cache, on the CPU."""
    cache, losses = kv_cache(model, rows.shape[1]), []
    for number, states in enumerate(chunks(model, rows[:, :-1], cache, chunk=chunk)):
        start = number * chunk + 1
        targets = rows[:, start : start + states.shape[1]]
        losses.append(losses_of(model, states, targets, "none").view(rows.shape[0], -1).cpu())
    return torch.cat(losses, dim=1)


def chosen_losses(model: PreTrainedModel, rows: Tensor, chosen: Tensor) -> Tensor:
    """Loss in nats of the tokens where ``chosen`` (rows, length) is true, row by row; a first token is never chosen.

    Only these tokens meet the output matrix.
    """
    wanted = chosen[:, 1:]
    states = hidden_states(model, rows)[:, :-1][wanted]
    return losses_of(model, states.unsqueeze(0), rows[:, 1:][wanted], "none").flatten()


def mean_loss(model: PreTrainedModel, rows: Tensor, *, ignore: int = -100) -> Tensor:
    """Mean loss in nats over all tokens but the first of each row and those equal to ``ignore`` in the last place.

    The last place holds EOS where a segment was cut; it cannot be foretold and is left out.
    """
    return mean_loss_of(model, hidden_states(model, rows), targets_of(rows, ignore=ignore))


def targets_of(rows: Tensor, *, ignore: int = -100) -> Tensor:
    """(rows, length - 1): what `mean_loss` foretells, -100 where nothing is."""
    targets = rows[:, 1:].clone()
    targets[:, -1] = torch.where(targets[:, -1] == ignore, -100, targets[:, -1])
    return targets


def mean_loss_of(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats of ``targets`` (rows, length - 1) but those of -100, from `hidden_states`'s output."""
    return losses_of(model, states[:, :-1], targets, "mean")


def answer_loss(model: PreTrainedModel, states: Tensor, targets: Tensor, answers: Tensor) -> Tensor | None:
    """Mean loss in nats of each row's answers, averaged over the rows that have any; None where no row has.

    Args:
        states, targets: as `mean_loss_of`.
        answers: (rows, length) bool.
    """
    chosen = answers[:, 1:]
    counts = chosen.sum(dim=1)
    if not counts.any():
        return None
    weights = (1 / counts)[:, None].expand(chosen.shape)[chosen] / (counts > 0).sum()
    return losses_of(model, states[:, :-1][chosen].unsqueeze(0), targets[chosen], "none").flatten() @ weights


@torch.no_grad()
def target_losses(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of each of ``targets``, 0 where it is -100: (rows, length - 1), without gradient."""
    return losses_of(model, states[:, :-1], targets, "none").view(targets.shape)


def losses_of(model: PreTrainedModel, states: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Losses in nats of ``targets`` (…) from the states (…, hidden) that foretell them, -100 for none.

    Args:
        reduction: torch's: none, sum or mean.
    """
    output: nn.Module | None = model.get_output_embeddings()
    assert isinstance(output, nn.Linear)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear_cross_entropy(
            states.flatten(0, 1).to(output.weight.dtype),
            output.weight,
            targets.flatten(),
            linear_bias=output.bias,
            reduction=reduction,
            options=_CHUNK,
        )
