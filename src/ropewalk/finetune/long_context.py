"""LongCE: each token is weighted by how much likelier a long context makes it than a short one.

Fang et al., arXiv 2410.23771, section 4. As in the paper, the short contexts are overlapping windows.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.models.loss import token_losses


@torch.no_grad()
def short_context_losses(model: PreTrainedModel, rows: Tensor, *, window: int) -> Tensor:
    """Losses (rows, length - 1) of every token but the first given at most ``window`` - 1 tokens before it.

    The row is read in pieces of ``window`` tokens, which start half a window apart; only the second half of each is
    predicted. Each piece begins with the row's first token, as documents begin with BOS. For tokens in the first window
    of a row, the long context is not longer, and their losses are NaN.
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
