"""A rotary module that chooses its scaling by input length, once per prefill."""

import torch
from torch import Tensor

from ropewalk.rope.rotary import Model, RotaryEmbedding, extend, find_rotary
from ropewalk.rope.scaling import LengthSwitch, RopeScaling, scaling_for_length


class SwitchingRotaryEmbedding(RotaryEmbedding):
    """Applies ``scaling_for_length(switch, n)``, n being the length of the input that a forward pass begins with.

    A pass whose positions contain 0 begins an input (a prefill, or a pass without cache; transformers' generate
    gives position 0 to padding on the left and to every first token). Its longest row decides for the whole batch.
    Later passes, whose positions are all above 0, continue an input and keep its scaling, so that keys in one
    cache are never of two scalings. It is one state per model: finish with one cache before beginning the next.
    """

    held_length: int | None
    """Input length to choose for whatever comes in; for prompts read in chunks, whose first pass shows only a part."""

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
        super().set_scaling(scaling)
        self.switch = ((scaling.target_length, scaling),)

    def choose(self, length: int) -> None:
        """Apply the scaling for inputs of ``length`` tokens until the next prefill."""
        scaling = scaling_for_length(self.switch, length)
        if scaling != self.scaling:
            super().set_scaling(scaling)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.held_length is not None:
            self.choose(self.held_length)
        else:
            first, last = torch.stack(torch.aminmax(position_ids)).tolist()
            if first == 0:
                self.choose(last + 1)
        return super().forward(x, position_ids)


def extend_by_length(model: Model, switch: LengthSwitch) -> Model:
    """Put ``switch`` into a transformers model in place, over whatever scaling it had, and return the model.

    Raises:
        ValueError: as `ropewalk.rope.extend`, for any scaling of the switch.
    """
    name, rotary = find_rotary(extend(model, switch[-1][1]))
    assert isinstance(rotary, RotaryEmbedding)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, SwitchingRotaryEmbedding(rotary.inv_freq, switch))
    return model
