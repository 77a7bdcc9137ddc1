"""A rotary module that chooses the scaling of every row of a batch by the length of its input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.rope.embedding import RotaryEmbedding, text_positions
from ropewalk.rope.length_switch import LengthSwitch
from ropewalk.rope.rotary import Model, extend, find_rotary, replace_rotary
from ropewalk.rope.scaling import RopeScaling


class SwitchingRotaryEmbedding(RotaryEmbedding):
    """Applies ``switch.for_length(n)`` to each row of a batch, n being the length of the row when its input begins.

    A row whose positions contain 0 begins an input: a prefill, or a pass without a cache (padding has position 0 or
    that of a neighbouring token). A row whose positions are all above 0 continues its input and keeps its scaling, so
    that all keys of a row in a cache have the same scaling. A model has one such state: finish with one cache before
    you begin the next.
    """

    held_length: int | None
    """Input length to choose by in place of that of the input; for prompts in chunks, of which a pass sees one part."""
    row_scalings: tuple[RopeScaling, ...]
    """Scaling of each row of the current batch; a single entry where all rows have the same."""

    def __init__(
        self, rotary: nn.Module, inv_freq: Tensor, switch: LengthSwitch, *, layer_type: str | None = None
    ) -> None:
        super().__init__(rotary, inv_freq, switch.longest, layer_type=layer_type)
        switch.check_rotary_dim(2 * len(inv_freq))
        self.switch = switch
        self.held_length = None
        self._is_in_pass, self._is_to_choose = False, True

    def set_scaling(self, scaling: RopeScaling) -> None:
        """Replace the whole switch by ``scaling``.

        Raises:
            ValueError: the factors are for another rotary dimension.
        """
        self._apply_scaling(scaling)
        self.switch = LengthSwitch(((scaling.target_length, scaling),))
        self.row_scalings = (scaling,)

    def _apply_scaling(self, scaling: RopeScaling) -> None:
        super().set_scaling(scaling)

    def for_lengths(self, lengths: Sequence[int]) -> tuple[RopeScaling, ...]:
        """Scalings of rows whose inputs have ``lengths`` tokens; a single entry where all are the same."""
        if self.held_length is not None:
            lengths = [self.held_length]
        return _merged([self.switch.for_length(length) for length in lengths])

    def begin_pass(self) -> None:
        """Choose at the first call in a forward pass only; DeepSeek-V4 calls again for its compressed keys."""
        self._is_in_pass, self._is_to_choose = True, True

    def end_pass(self) -> None:
        """Choose at every call from now on, as is right outside of a forward pass."""
        self._is_in_pass, self._is_to_choose = False, True

    def _choose(self, position_ids: Tensor) -> None:
        first, last = (bound.tolist() for bound in torch.aminmax(position_ids, dim=-1))
        if self.held_length is not None or max(first) == 0:
            self.row_scalings = self.for_lengths([position + 1 for position in last])
        elif min(first) == 0:
            continued = self._row_scalings(len(first))
            new_scalings = [self.switch.for_length(position + 1) for position in last]
            self.row_scalings = _merged(
                [new if start == 0 else old for start, new, old in zip(first, new_scalings, continued, strict=True)]
            )

    def _row_scalings(self, count: int) -> tuple[RopeScaling, ...]:
        """Scaling of each of the ``count`` rows of a batch.

        Raises:
            ValueError: the inputs have different scalings and began as a batch with another number of rows.
        """
        if len(self.row_scalings) == 1:
            return self.row_scalings * count
        if len(self.row_scalings) != count:
            raise ValueError(
                f"{count} rows continue inputs that began as {len(self.row_scalings)} rows of different scalings; "
                "continue with the same rows, or fix one scaling with load_extended(path, length=...)"
            )
        return self.row_scalings

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in `RotaryEmbedding`; raises ValueError where the number of rows has changed."""
        if not self.scales(*args, **kwargs):
            return super().forward(x, position_ids, *args, **kwargs)
        if self._is_to_choose:
            self._choose(text_positions(position_ids))
            self._is_to_choose = not self._is_in_pass
        if len(self.row_scalings) == 1:
            if self.row_scalings[0] != self.scaling:
                self._apply_scaling(self.row_scalings[0])
            return super().forward(x, position_ids, *args, **kwargs)
        scalings = self._row_scalings(x.shape[0])
        rows = position_ids.expand(*position_ids.shape[:-2], len(scalings), -1)
        parts = []
        for row, scaling in enumerate(scalings):
            if scaling != self.scaling:
                self._apply_scaling(scaling)
            parts.append(super().forward(x, rows[..., row : row + 1, :], *args, **kwargs))
        return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


def _merged(scalings: Sequence[RopeScaling]) -> tuple[RopeScaling, ...]:
    return tuple(scalings[:1]) if all(scaling == scalings[0] for scaling in scalings) else tuple(scalings)


def extend_by_length(model: Model, switch: LengthSwitch) -> Model:
    """Make a transformers model apply ``switch`` in place of any scaling it has, and return the model.

    Rows padded on either side get the positions that they have without padding, also where only the attention mask
    shows it.

    Raises:
        ValueError: as `ropewalk.rope.extend`, for any scaling of the switch.
    """
    name, rotary = find_rotary(extend(model, switch.longest))
    assert isinstance(rotary, RotaryEmbedding)
    switching = SwitchingRotaryEmbedding(rotary.rotary, rotary.inv_freq, switch, layer_type=rotary.layer_type)
    replace_rotary(model, switching)
    decoder = _decoder_of(model, name)
    decoder.register_forward_pre_hook(_with_positions, with_kwargs=True)
    decoder.register_forward_pre_hook(lambda *_: switching.begin_pass())
    decoder.register_forward_hook(lambda *_: switching.end_pass(), always_call=True)
    return model


def _decoder_of(model: nn.Module, rotary_name: str) -> nn.Module:
    """The innermost module around the rotary module that takes tokens."""
    parts = rotary_name.split(".")
    enclosing = [model.get_submodule(".".join(parts[:depth])) for depth in reversed(range(len(parts)))]
    return next((module for module in enclosing if hasattr(module, "get_input_embeddings")), model)


def _with_positions(
    module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Derive positions from a two-dimensional attention mask that has padding, where no positions are given."""
    mask = options.get("attention_mask")
    inputs = options.get("input_ids", options.get("inputs_embeds"))
    if options.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2 or inputs is None:
        return None
    if bool(mask.all()):
        return None
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return arguments, {**options, "position_ids": positions[:, -inputs.shape[1] :]}
