"""Writing an extended model as a checkpoint that plain transformers loads (rope_type "longrope").

The folder holds config.json, generation_config.json, model*.safetensors, the tokenizer's files, README.md (the
model card) and ropewalk.json: the whole length switch with n_hat, which transformers has no field for.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.files import read_json, write_json, write_text, writing
from ropewalk.rope import methods, rotary_shape
from ropewalk.rope.scaling import LengthSwitch, RopeScaling, switch_to_json

SWITCH_FILE = "ropewalk.json"


def export_checkpoint(model: Any, tokenizer: Any, switch: LengthSwitch, folder: Path, *, card: str) -> None:
    """Write ``model`` under ``switch`` to ``folder``, whole or not at all; the model in memory stays as it is.

    Args:
        model: a transformers causal language model, plain or extended; its weights are written as they are.
        switch: its last scaling is the one that plain transformers applies, at every length.
        card: text of README.md.

    Raises:
        ValueError: a scaling is for another rotary dimension, or the model's config cannot express it.
        OSError: the disk is full.
    """
    shape = rotary_shape(model)
    for _, scaling in switch:
        scaling.check_rotary_dim(shape.rotary_dim)
    last = switch[-1][1]
    with writing(folder) as aside:
        aside.mkdir()
        with _exported_config(model, last):
            model.save_pretrained(aside)
        _check_config(aside, last, shape.base)
        _save_tokenizer(tokenizer, aside, last.target_length)
        write_text(aside / "README.md", card)
        write_text(aside / SWITCH_FILE, switch_to_json(switch))


@contextmanager
def _exported_config(model: Any, scaling: RopeScaling) -> Iterator[None]:
    # save_pretrained writes model.config, and into it: lend the model another one meanwhile.
    kept = model.config
    config = copy.deepcopy(kept)
    # One factor set for every length: transformers chooses short or long anew at every step, and all models but Phi
    # would go on from a cache of the other set when generation crosses the original window.
    factors = list(scaling.factors)
    parameters = {
        "rope_type": "longrope",
        "rope_theta": kept.rope_parameters["rope_theta"],
        "short_factor": factors,
        "long_factor": factors,
        "factor": scaling.ratio,
        "attention_factor": scaling.attention_factor,
        "original_max_position_embeddings": scaling.original_length,
    }
    if "partial_rotary_factor" in kept.rope_parameters:
        parameters["partial_rotary_factor"] = kept.rope_parameters["partial_rotary_factor"]
    if hasattr(config, "original_max_position_embeddings"):  # Phi: where set, it beats the one in rope_parameters
        config.original_max_position_embeddings = scaling.original_length
    config.max_position_embeddings = scaling.target_length
    config.rope_parameters = parameters
    model.config = config
    try:
        yield
    finally:
        model.config = kept


def _check_config(folder: Path, scaling: RopeScaling, base: float) -> None:
    """Raise ValueError unless transformers makes our frequencies of the config written."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    found, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config)
    plain = torch.tensor(methods.inverse_frequencies(scaling.rotary_dim, base))
    expected = plain / torch.tensor(scaling.factors)
    if (
        found.shape != expected.shape
        or not torch.allclose(found, expected, rtol=1e-5, atol=0)
        or attention_factor != scaling.attention_factor
    ):
        raise ValueError(
            f"transformers does not read this scaling from a {type(config).__name__}; it cannot be exported"
        )


def _save_tokenizer(tokenizer: Any, folder: Path, length: int) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "model_max_length": length})
