"""Writing an extended model as a checkpoint that plain transformers loads (rope_type "longrope").

The folder holds config.json, generation_config.json, model*.safetensors, the tokenizer's files, README.md (the
model card) and ropewalk.json: the whole length switch with n_hat, which transformers has no field for.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropewalk.export.cost import SAME, exported_scalings
from ropewalk.files import read_json, write_json, write_text, writing
from ropewalk.rope import methods, rotary_shape
from ropewalk.rope.scaling import LengthSwitch, RopeScaling, scaling_for_length, switch_to_json

SWITCH_FILE = "ropewalk.json"
BESIDE_WEIGHTS = 2**20
"""Bytes allowed for everything that is not weights."""


def export_checkpoint(
    model: Any,
    tokenizer: Any,
    switch: LengthSwitch,
    folder: Path,
    *,
    card: str,
    short_factor: str = SAME,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write ``model`` under ``switch`` to ``folder``, whole or not at all; the model in memory stays as it is.

    An export that is there already is replaced.

    Args:
        model: a transformers causal language model, plain or extended; its weights are written as they are.
        switch: its last scaling is the one that plain transformers applies beyond the original window.
        card: text of README.md.
        short_factor: what plain transformers applies up to the original window: "same", the last scaling too, or
            "recovered", the switch's own for that length (`ropewalk.export.cost.exported_scalings`).
        files: more files for the folder, such as the card's pictures: name and content.

    Raises:
        ValueError: a scaling is for another rotary dimension, the model's config cannot express it, or the folder
            holds something else than an export.
        OSError: the disk is full, or too full to begin.
    """
    shape = rotary_shape(model)
    for _, scaling in switch:
        scaling.check_rotary_dim(shape.rotary_dim)
    check_folder(folder)
    check_space(folder, _weights_size(model) + BESIDE_WEIGHTS)
    short, long = exported_scalings(switch, short_factor)
    with writing(folder) as aside:
        aside.mkdir()
        short_mscale = long if short_factor == SAME else scaling_for_length(switch, long.original_length)
        with _exported_config(model, short, long, short_mscale=short_mscale.attention_factor):
            model.save_pretrained(aside)
        _check_config(aside, short, long, shape.base)
        _save_tokenizer(tokenizer, aside, long.target_length)
        _raise_generation_length(aside, model.config.max_position_embeddings, long.target_length)
        write_text(aside / "README.md", card)
        write_text(aside / SWITCH_FILE, switch_to_json(switch))
        for name, content in (files or {}).items():
            (aside / name).write_bytes(content)


def check_folder(folder: Path) -> None:
    """Raise ValueError where ``folder`` is a file, or holds something else than an export."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to export to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SWITCH_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no earlier export; give another folder, or empty this one")


def check_space(folder: Path, size: int) -> None:
    """Raise OSError unless the disk that ``folder`` will be on has room for ``size`` bytes."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(
            f"{folder} needs {_mib(size)} and its disk has {_mib(free)} left; free some, or give another folder"
        )


def _weights_size(model: Any) -> int:
    # Tied weights are one tensor under two names, and written once.
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


@contextmanager
def _exported_config(model: Any, short: RopeScaling, long: RopeScaling, *, short_mscale: float) -> Iterator[None]:
    # save_pretrained writes model.config, and into it: lend the model another one meanwhile.
    kept = model.config
    config = copy.deepcopy(kept)
    parameters = {
        "rope_type": "longrope",
        "rope_theta": kept.rope_parameters["rope_theta"],
        # transformers chooses short or long anew at every step, and all models but Phi go on from a cache of the
        # other set when generation crosses the original window: only one set for both is safe.
        "short_factor": list(short.factors),
        "long_factor": list(long.factors),
        "factor": long.ratio,
        "attention_factor": long.attention_factor,
        # vLLM and SGLang read these two and not attention_factor.
        "short_mscale": short_mscale,
        "long_mscale": long.attention_factor,
        "original_max_position_embeddings": long.original_length,
    }
    if "partial_rotary_factor" in kept.rope_parameters:
        parameters["partial_rotary_factor"] = kept.rope_parameters["partial_rotary_factor"]
    if hasattr(config, "original_max_position_embeddings"):  # Phi: where set, it beats the one in rope_parameters
        config.original_max_position_embeddings = long.original_length
    config.max_position_embeddings = long.target_length
    config.rope_parameters = parameters
    model.config = config
    try:
        yield
    finally:
        model.config = kept


def _check_config(folder: Path, short: RopeScaling, long: RopeScaling, base: float) -> None:
    """Raise ValueError unless transformers makes our frequencies of the config written."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    plain = torch.tensor(methods.inverse_frequencies(long.rotary_dim, base))
    for scaling, length in ((short, long.original_length), (long, long.original_length + 1)):
        found, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
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


def _raise_generation_length(folder: Path, window: int, length: int) -> None:
    """Where generation stops at the old window because that was the end of it, let it stop at the new one."""
    path = folder / "generation_config.json"
    if path.is_file() and read_json(path).get("max_length") == window:
        write_json(path, {**read_json(path), "max_length": length})
