"""Next-token losses without the logits of a whole row: hidden states meet the output matrix in chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from transformers import PreTrainedModel

_CHUNK = LinearCrossEntropyOptions(batch_chunk_size=1024, chunking_method=None)


def hidden_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """(rows, length, hidden) output of the model's body, before the output matrix."""
    states: Tensor = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return states


def token_losses(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Loss in nats of tokens 1 … length-1 of each row given all before: (rows, length - 1)."""
    return _losses(model, hidden_states(model, rows)[:, :-1], rows[:, 1:], "none").view(rows.shape[0], -1)


def chosen_losses(model: PreTrainedModel, rows: Tensor, chosen: Tensor) -> Tensor:
    """Loss in nats of the tokens where ``chosen`` (rows, length) is true, row by row; a first token is never chosen.

    Only these tokens meet the output matrix.
    """
    wanted = chosen[:, 1:]
    states = hidden_states(model, rows)[:, :-1][wanted]
    return _losses(model, states.unsqueeze(0), rows[:, 1:][wanted], "none").flatten()


def mean_loss(model: PreTrainedModel, rows: Tensor, *, ignore: int = -100) -> Tensor:
    """Mean loss in nats over all tokens but the first of each row and those equal to ``ignore`` in the last place.

    The last place holds EOS where a segment was cut; it cannot be foretold and is left out.
    """
    return _losses(model, hidden_states(model, rows)[:, :-1], targets_of(rows, ignore=ignore), "mean")


def targets_of(rows: Tensor, *, ignore: int = -100) -> Tensor:
    """(rows, length - 1): what `mean_loss` foretells, -100 where nothing is."""
    targets = rows[:, 1:].clone()
    targets[:, -1] = torch.where(targets[:, -1] == ignore, -100, targets[:, -1])
    return targets


def _losses(model: PreTrainedModel, states: Tensor, targets: Tensor, reduction: str) -> Tensor:
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
