"""A rotary module that chooses its scaling by input length, for every row of a batch on its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.rope.rotary import Model, RotaryEmbedding, extend, find_rotary
from ropewalk.rope.scaling import LengthSwitch, RopeScaling, scaling_for_length


class SwitchingRotaryEmbedding(RotaryEmbedding):
    """Applies ``scaling_for_length(switch, n)`` to each row, n being the row's length when its input begins.

    A row whose positions contain 0 begins an input (a prefill, or a pass without cache; padding has position 0 or that
    of a token beside it). A row whose positions are all above 0 continues one and keeps its scaling, so that the keys
    of a row in a cache are never of two scalings. It is one state per model: finish with one cache before beginning
    the next.
    """

    held_length: int | None
    """Input length to choose for whatever comes in; for prompts read in chunks, whose first pass shows only a part."""
    row_scalings: tuple[RopeScaling, ...]
    """What the rows of the batch at hand have; one entry where all have the same."""

    def __init__(self, inv_freq: Tensor, switch: LengthSwitch) -> None:
        super().__init__(inv_freq, switch[-1][1])
        for _, scaling in switch:
            scaling.check_rotary_dim(2 * len(inv_freq))
        self.switch = switch
        self.held_length = None

    def set_scaling(self, scaling: RopeScaling) -> None:
        """Replace the whole switch by ``scaling``.

        Raises:
            ValueError: the factors are for another rotary dimension.
        """
        self._apply_scaling(scaling)
        self.switch = ((scaling.target_length, scaling),)
        self.row_scalings = (scaling,)

    def _apply_scaling(self, scaling: RopeScaling) -> None:
        super().set_scaling(scaling)

    def for_lengths(self, lengths: Sequence[int]) -> tuple[RopeScaling, ...]:
        """The scaling of rows whose inputs have so many tokens."""
        if self.held_length is not None:
            lengths = [self.held_length]
        return _merged([scaling_for_length(self.switch, length) for length in lengths])

    def _choose(self, position_ids: Tensor) -> None:
        first, last = (bound.tolist() for bound in torch.aminmax(position_ids, dim=-1))
        if self.held_length is not None or max(first) == 0:
            self.row_scalings = self.for_lengths([position + 1 for position in last])
        elif min(first) == 0:
            kept = self._rows(len(first))
            begun = [scaling_for_length(self.switch, position + 1) for position in last]
            self.row_scalings = _merged(
                [new if start == 0 else old for start, new, old in zip(first, begun, kept, strict=True)]
            )

    def _rows(self, count: int) -> tuple[RopeScaling, ...]:
        """The scaling of each of ``count`` rows.

        Raises:
            ValueError: the inputs at hand are of different scalings and were begun with another count of rows.
        """
        if len(self.row_scalings) == 1:
            return self.row_scalings * count
        if len(self.row_scalings) != count:
            raise ValueError(
                f"{count} rows go on from inputs that began as {len(self.row_scalings)} rows of different scalings; "
                "go on with the same rows, or fix one scaling with load_extended(path, length=...)"
            )
        return self.row_scalings

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of shape (rows, length, rotary_dim); raises ValueError as the docstring of the rows says."""
        self._choose(position_ids)
        if len(self.row_scalings) == 1:
            if self.row_scalings[0] != self.scaling:
                self._apply_scaling(self.row_scalings[0])
            return super().forward(x, position_ids)
        scalings = self._rows(x.shape[0])
        parts = []
        for scaling, positions in zip(scalings, position_ids.expand(len(scalings), -1), strict=True):
            if scaling != self.scaling:
                self._apply_scaling(scaling)
            parts.append(super().forward(x, positions[None]))
        cos, sin = zip(*parts, strict=True)
        return torch.cat(cos), torch.cat(sin)


def _merged(scalings: Sequence[RopeScaling]) -> tuple[RopeScaling, ...]:
    return tuple(scalings[:1]) if all(scaling == scalings[0] for scaling in scalings) else tuple(scalings)


def extend_by_length(model: Model, switch: LengthSwitch) -> Model:
    """Put ``switch`` into a transformers model in place, over whatever scaling it had, and return the model.

    Rows padded on either side get the positions that they have alone, also where only an attention mask says so.

    Raises:
        ValueError: as `ropewalk.rope.extend`, for any scaling of the switch.
    """
    name, rotary = find_rotary(extend(model, switch[-1][1]))
    assert isinstance(rotary, RotaryEmbedding)
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, leaf, SwitchingRotaryEmbedding(rotary.inv_freq, switch))
    owner.register_forward_pre_hook(_with_positions, with_kwargs=True)
    return model


def _with_positions(
    module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Count positions over a two-dimensional attention mask, where it has padding and no positions are given."""
    mask = options.get("attention_mask")
    new = options.get("input_ids", options.get("inputs_embeds"))
    if options.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2 or new is None:
        return None
    if bool(mask.all()):
        return None
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return arguments, {**options, "position_ids": positions[:, -new.shape[1] :]}
