"""Generation across the lengths at which an extended model changes its scaling.

Cached keys and values depend on the scaling that they were computed under, in all layers but the first also through
the hidden states, so a cache cannot be converted from one scaling to another. When a row of a batch outgrows its
scaling, the whole batch is read again (transformers does the same for Phi-3): with five scalings, at most four times
in a generation.
"""

from typing import Any

from ropewalk.rope import find_rotary
from ropewalk.rope.switching import SwitchingRotaryEmbedding


class SwitchingGeneration:
    """Mixed into a transformers model whose rotary module is a `SwitchingRotaryEmbedding`."""

    def prepare_inputs_for_generation(
        self, input_ids: Any, cache: Any = None, attention_mask: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Prepare the inputs of the next forward pass, without the cache where a row has outgrown its scaling.

        Raises:
            ValueError: the new part of an input outgrows its scaling, and the part before it is not given.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        # transformers passes the whole input and the length of its new part, or only the new part (a prompt in chunks).
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
    """Whether any row is too long for the scaling that its cache was computed under."""
    rotary = find_rotary(model)[1]
    # `extend` may have replaced the module since.
    if not isinstance(rotary, SwitchingRotaryEmbedding):
        return False
    padded = attention_mask is not None and attention_mask.ndim == 2
    lengths = attention_mask.sum(-1).tolist() if padded else [length] * rows
    return rotary.for_lengths(lengths) != rotary.row_scalings


def generate_by_length(model: Any) -> Any:
    """Make ``generate`` change scalings in a model that `ropewalk.rope.switching.extend_by_length` extended."""
    kind = type(model)
    # The class keeps its name, which save_pretrained writes to config.json.
    model.__class__ = type(kind.__name__, (SwitchingGeneration, kind), {"__module__": kind.__module__})
    return model
