"""What a checkpoint's rotary embedding is meant to compute, independently of any runtime."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ropewalk.export.load import exported_switch
from ropewalk.models.published import PublishedScaling, empty_model, published_scaling, read_config
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, model_scaling


@dataclass(frozen=True)
class Reference:
    """The scaling that a checkpoint states, by which a runtime's losses are judged."""

    path: str
    shape: RotaryShape
    switch: LengthSwitch
    """As ropewalk.json or config.json states it."""
    length: int
    """Length in tokens of the text that is read."""
    scaling: RopeScaling
    """What the checkpoint states for that length."""

    @classmethod
    def read(cls, path: str, *, length: int | None, trust_remote_code: bool = False) -> Self:
        """What the folder, its config.json or the hub id ``path`` states.

        Args:
            length: length of the text; by default the longest window that is stated.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it cannot be read, or states no scaling.
        """
        published: PublishedScaling = published_scaling(path, trust_remote_code=trust_remote_code)
        switch = exported_switch(path) or published.switch
        if all(scaling.is_plain for scaling in switch.scalings):
            raise ValueError(
                f"{path} states no scaling of its rotary embedding, so there is none to be applied; where a converter "
                "dropped it, give doctor.reference, the checkpoint that the model was made from"
            )
        length = length or switch.lengths[-1]
        scaling = switch.for_length(length)
        if exported_switch(path) is None:
            # Dynamic NTK has other factors for every length.
            model = empty_model(
                read_config(path, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code
            )
            scaling = (
                replace(
                    model_scaling(model, length=length), original_length=scaling.original_length, target_length=length
                )
                if length >= scaling.original_length
                else scaling
            )
        return cls(str(Path(path)), published.shape, switch, length, scaling)

    @property
    def window(self) -> int:
        """Window in tokens before any scaling."""
        return self.scaling.original_length

    @property
    def plain(self) -> RopeScaling:
        return RopeScaling(
            (1.0,) * len(self.scaling.factors), self.window, max(self.window, self.length), method="none"
        )

    def allowed(self) -> Iterator[tuple[str, RopeScaling]]:
        """(description, scaling) of what other software is known to apply in place of `scaling`."""
        longest = self.switch.longest
        if self.scaling.n_hat:
            first = f"the first {self.scaling.n_hat} positions (n_hat), which only load_extended leaves as they are"
            yield f"also at {first}", replace(self.scaling, n_hat=0)
        if replace(longest, n_hat=0).factors != self.scaling.factors:
            yield (
                f"that for {longest.target_length:,} tokens at every length, where load_extended chooses by length",
                replace(longest, n_hat=0),
            )

    def wrong(self) -> Iterator[tuple[str, RopeScaling]]:
        """(description, scaling) of what is left where a converter loses a part of `scaling`."""
        factors = replace(self.scaling, n_hat=0)
        if self.scaling.attention_factor != 1:
            yield "the factors without the attention factor", replace(factors, attention_factor=1.0)
            yield (
                "the attention factor without the factors",
                replace(self.plain, attention_factor=factors.attention_factor),
            )
        for up_to, scaling in self.switch.entries[:-1]:
            if scaling.factors != self.scaling.factors and not scaling.is_plain:
                yield f"the factors for inputs up to {up_to:,} tokens", replace(scaling, n_hat=0)
