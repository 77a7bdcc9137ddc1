"""Checks that always run, on one short row each: of a loaded model, of its own scaling, and of an exported folder.

A model class that was never tried here is silently computed wrong if a part of it is overlooked: a step of ``forward``
after the output matrix, attention that reads the scaling too, a default that config.json omits. All of these show in
the logits, so every check compares with the logits that transformers computes.

Two computations may differ by sqrt(eps) of the logits' dtype (half of its digits: 3e-4 in float32, 0.09 in bfloat16),
plus the error of the angle at the last position when a frequency is rounded to float32. The median over all logits is
compared, since a router of experts sends single tokens to other experts where rounding breaks a tie.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.base import BaseModel
from ropewalk.models.head import evaluating
from ropewalk.models.loss import long_token_losses, token_losses
from ropewalk.models.memory import is_out_of_memory
from ropewalk.models.reasons import reason
from ropewalk.rope import LengthSwitch, RopeScaling, extended, model_scaling
from ropewalk.rope.query_scales import folded

TOKENS = 48
"""Length of a row whose positions are spread over a longer input."""
_WHOLE = 256
"""Longest input that is read whole, in tokens."""
_CHUNK = 20
_REACH = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size")
"""Keys of a config that say how far back layers attend, which does not show in the logits of a short row."""
_LONGEST_WHOLE = 1024
"""Longest input that is read whole where a class takes no positions, in tokens."""


def check_loaded(model: Any, base: BaseModel) -> None:
    """Check a model that was just loaded: its losses, and its logits under the scaling that it came with.

    A scaling that ``model.start=plain`` drops is not checked.

    Raises:
        ValueError: as `check_losses` and `check_published_scaling`.
    """
    check_losses(model, base.path)
    scaling = model_scaling(model)
    switch = LengthSwitch(((scaling.original_length, scaling),)) if scaling.is_plain else base.start_switch
    if switch is not None:
        check_published_scaling(model, switch, base.path)


def check_losses(model: Any, path: str) -> None:
    """Check that our losses, in one pass and in chunks, agree with the logits that transformers computes.

    Raises:
        ValueError: they do not, so this class cannot be measured or trained.
    """
    row = _row(model, TOKENS)
    assert row is not None
    ids = row["input_ids"]
    try:
        logits = forward_logits(model, row)
        with torch.no_grad():
            ways = {
                "in one pass": token_losses(model, ids),
                f"in chunks of {_CHUNK} tokens": long_token_losses(model, ids, chunk=_CHUNK),
            }
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{type(model).__name__} at {path} does not read a row of tokens: {reason(error)}") from error
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    for way, losses in ways.items():
        difference = _median((losses[0].float().to(expected.device) - expected).abs()) / _spread(logits)
        _refuse(model, path, f"losses {way} and those of its logits", difference, length=TOKENS)


def check_published_scaling(model: Any, switch: LengthSwitch, path: str) -> None:
    """Check that a freshly loaded model keeps its logits when ours replaces the scaling of its class.

    Args:
        switch: the scalings that the checkpoint came with, as we read them; checked at the length of each and at the
            original window.

    Raises:
        ValueError: the logits change, so the checkpoint's scaling is not the one that we read.
    """
    for length in sorted({switch.longest.original_length, *switch.lengths}):
        row = _row(model, length)
        if row is None:
            continue
        expected = forward_logits(model, row)
        scaling = switch.for_length(length)
        with extended(model, scaling):
            actual = forward_logits(model, row)
        what = (
            f"logits at {length} tokens under the rotary module of its class and under the {scaling.method} scaling "
            "read from config.json"
        )
        _refuse(model, path, what, _difference(actual, expected), length=length)


def check_folding(model: Any, scaling: RopeScaling, *, path: str) -> None:
    """Check that folding the query scales of ``scaling`` into the weights gives the logits that hooks give.

    Raises:
        ValueError: the logits differ, or as `ropewalk.rope.query_scales.fold`.
    """
    if scaling.query_scales is None:
        return
    row = _row(model, TOKENS)
    assert row is not None
    with extended(model, scaling):
        expected = forward_logits(model, row)
    with folded(model, scaling), extended(model, replace(scaling, query_scales=None)):
        difference = _difference(forward_logits(model, row), expected)
    _refuse(model, path, "logits under query scales and with these in the weights", difference, length=TOKENS)


def check_reloaded(model: Any, loaded: Any, scalings: Mapping[int, RopeScaling], *, path: str, by: str) -> None:
    """Check that a reloaded model has the logits that the model in memory has with the reloaded weights.

    Args:
        model: the model in memory, extended or not.
        loaded: the same model as its exported folder gives it, in the same dtype and on the same device.
        scalings: what ``loaded`` is meant to apply, by the length of its input in tokens.
        by: what loaded it, for the message.

    Raises:
        ValueError: the logits differ.
    """
    for length, scaling in scalings.items():
        row = _row(model, length)
        if row is None:
            continue
        with extended(model, scaling):
            expected = forward_logits(model, row, weights=loaded.state_dict(keep_vars=True))
        difference = _difference(forward_logits(loaded, row), expected)
        what = f"logits at {length} tokens in memory and reloaded with {by}"
        _refuse(model, path, what, difference, length=length)


def check_same_weights(model: Any, loaded: Any, *, path: str, dtype: torch.dtype) -> None:
    """Check that a reloaded model attends as far as the model in memory, and has its weights in the precision of
    ``dtype``.

    Raises:
        ValueError: a setting or a weight differs, or a weight is missing or does not fit into the dtype.
    """
    kind, eps = type(model).__name__, torch.finfo(dtype).eps
    for name in _REACH:
        ours, theirs = (getattr(item.config.get_text_config(), name, None) for item in (model, loaded))
        if ours != theirs:
            raise ValueError(f"{kind} at {path}: {name} is {ours} in memory and {theirs} after reloading")
    weights = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if name not in weights or not torch.allclose(weights[name].to(weight), weight, rtol=eps, atol=1e-7):
            raise ValueError(f"{kind} at {path}: {name} is not what it is in memory after reloading in {dtype}")


@torch.no_grad()
def forward_logits(model: Any, row: Mapping[str, Tensor], *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits (1, tokens, vocabulary) in float32 and evaluation mode, from ``weights`` or else the model's own."""
    inputs = {**row, "use_cache": False}
    with evaluating(model):
        output = model(**inputs) if weights is None else torch.func.functional_call(model, dict(weights), (), inputs)
    logits: Tensor = output.logits.float()
    return logits


def _row(model: Any, length: int) -> dict[str, Tensor] | None:
    """A row of random tokens at positions over an input of ``length`` tokens, most of them in its second half.

    None where the class takes no positions and the input is too long to be read whole in about a second.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions and length > _LONGEST_WHOLE:
        return None
    tokens = TOKENS if takes_positions and length > _WHOLE else length
    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    # Positions with gaps would be taken for several documents in one row if there were no mask.
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if takes_positions:
        row["position_ids"] = _positions(tokens, length)[None].to(device)
    return row


def _positions(tokens: int, length: int) -> Tensor:
    """Rising positions of ``tokens`` tokens, from 0 to ``length - 1``; a quarter of them lies in the first half."""
    if tokens == length:
        return torch.arange(length)
    quarter = tokens // 4
    parts = ((0, length // 2 - 1, quarter), (length // 2, length - 1, tokens - quarter))
    return torch.cat([torch.linspace(*part, dtype=torch.float64) for part in parts]).long()


def _spread(logits: Tensor) -> float:
    """Median distance of the logits from their token's median; above 0."""
    centre = logits.nanmedian(dim=-1, keepdim=True).values
    return max(_median((logits - centre).abs()), torch.finfo(torch.float32).tiny)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Median difference of logits as a share of their spread, NaN where only one of them holds a NaN."""
    if not torch.equal(actual.isnan(), expected.isnan()):
        return math.nan
    # Classes that mask a part of the vocabulary give it -inf, whose difference is NaN.
    return _median((actual - expected).abs()) / _spread(expected)


def _median(values: Tensor) -> float:
    return float(values.nanmedian())


def _refuse(model: Any, path: str, what: str, difference: float, *, length: int) -> None:
    """Raise ValueError where ``what`` differ by more of the logits' spread than rounding explains.

    Args:
        length: number of tokens over which the positions are spread.
    """
    tolerance = math.sqrt(torch.finfo(model.dtype).eps) + length * torch.finfo(torch.float32).eps
    if not difference <= tolerance:
        raise ValueError(
            f"{type(model).__name__} at {path}: {what} differ by {difference:.2g} of the logits' spread, where "
            f"rounding explains {tolerance:.1g}; this class does something that is not supported here"
        )
