"""Generation across the lengths at which an extended model changes its scaling.

Keys and values in a cache belong to the scaling that they were computed under, in all layers but the first also
through what the layers below made of it, so a cache cannot be turned from one scaling to another. When a row of a
batch outgrows its scaling, the whole batch is read once more (transformers does the same for Phi-3): with five
scalings that is at most four times in a generation.
"""

from typing import Any

from ropewalk.rope import find_rotary
from ropewalk.rope.switching import SwitchingRotaryEmbedding


class SwitchingGeneration:
    """Mixed into a transformers model whose rotary module is a `SwitchingRotaryEmbedding`."""

    def prepare_inputs_for_generation(
        self, input_ids: Any, cache: Any = None, attention_mask: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Inputs of the next pass; without the cache where a row's scaling is no longer the one that it was made under.

        Raises:
            ValueError: a prompt read in chunks, or the new part of an input, outgrows its scaling.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        # transformers gives the whole input and how much of it is new, or the new part alone (a chunk of a prompt).
        only_new = past > 0 and options.get("next_sequence_length") is None
        length = input_ids.shape[1] + (past if only_new else 0)
        if past > 0 and _outgrown(self, input_ids.shape[0], length, attention_mask):
            if only_new:
                raise ValueError(
                    "the input outgrows the scaling that its first part was read under, and only its last part is "
                    "given; fix one scaling with load_extended(path, length=...)"
                )
            cache, options["next_sequence_length"] = None, None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, cache=cache, attention_mask=attention_mask, **options
        )
        return inputs


def _outgrown(model: Any, rows: int, length: int, attention_mask: Any) -> bool:
    rotary = find_rotary(model)[1]
    # `extend` may have put in another module since.
    if not isinstance(rotary, SwitchingRotaryEmbedding):
        return False
    padded = attention_mask is not None and attention_mask.ndim == 2
    lengths = attention_mask.sum(-1).tolist() if padded else [length] * rows
    return rotary.for_lengths(lengths) != rotary.row_scalings


def generate_by_length(model: Any) -> Any:
    """Make ``model``, extended by `ropewalk.rope.switching.extend_by_length`, change scalings while it generates."""
    kind = type(model)
    # Under the same name, which save_pretrained writes into config.json.
    model.__class__ = type(kind.__name__, (SwitchingGeneration, kind), {"__module__": kind.__module__})
    return model
