"""LongCE: tokens count by how much likelier the long context makes them than a short one (Fang et al.).

arXiv 2410.23771, section 4, where the short context is that of windows which overlap too.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.models.loss import token_losses


@torch.no_grad()
def short_context_losses(model: PreTrainedModel, rows: Tensor, *, window: int) -> Tensor:
    """Losses (rows, length - 1) of every token but the first given at most ``window`` - 1 tokens before it.

    Pieces of ``window`` tokens are read, each of which starts half a window after the last one and predicts its second
    half. It begins with the row's first token, as documents do with BOS. The tokens of a row's first window have no
    other context than the long one, and their losses are NaN.
    """
    half, length = window // 2, rows.shape[1]
    short = torch.full((len(rows), length - 1), torch.nan, device=rows.device)
    starts = [*range(half, length - window, half), max(length - window, 0)]
    pieces = torch.cat([rows[:, start : start + window] for start in starts])
    pieces[:, 0] = rows[:, 0].repeat(len(starts))
    for start, losses in zip(starts, token_losses(model, pieces).split(len(rows)), strict=True):
        end = start + window - 1
        if start:
            first = max(end - half, window - 1)
            short[:, first:end] = losses[:, first - end :].to(short.dtype)
    return short


def token_weights(long: Tensor, short: Tensor, *, most: float) -> Tensor:
    """min(P(token | long context) / P(token | short context), ``most``) from the losses; 1 where ``short`` is NaN."""
    return (short - long).exp().clamp(max=most).nan_to_num(nan=1.0)
