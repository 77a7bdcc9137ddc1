"""Writing an extended model as a checkpoint that plain transformers loads (rope_type "longrope").

The folder holds config.json, generation_config.json, model*.safetensors, the tokenizer's files, README.md (the model
card) and ropewalk.json: the whole length switch, and n_hat, for which transformers has no field.
"""

import fnmatch
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ropewalk.export.cost import SAME, exported_scalings
from ropewalk.export.load import SWITCH_FILE, apply_by_length, load_plain
from ropewalk.files import read_json, write_json, write_text, writing
from ropewalk.models.checks import check_folding, check_reloaded, check_same_weights
from ropewalk.models.longrope_config import longrope_config
from ropewalk.rope import LengthSwitch, rotary_shape
from ropewalk.rope.query_scales import folded

BESIDE_WEIGHTS = 2**20
"""Bytes to leave free for all files other than the weights."""


def export_checkpoint(
    model: Any,
    tokenizer: Any,
    switch: LengthSwitch,
    folder: Path,
    *,
    card: str,
    short_factor: str = SAME,
    dtype: str | None = None,
    files: Iterable[Path] = (),
) -> None:
    """Write ``model`` extended by ``switch`` to ``folder``, whole or not at all; the model in memory is not changed.

    An earlier export in ``folder`` is replaced. Before that, the new one is loaded beside the model in memory, in the
    same dtype, and its logits are compared; so there must be room for the model twice. Query scales are folded into the
    weights that are written, and the exported scalings have none.

    Args:
        model: a transformers causal language model, plain or extended; its weights are written as they are, except for
            the query scales of ``switch``.
        switch: plain transformers applies its last scaling beyond the original window.
        card: text of README.md.
        short_factor: the scaling that plain transformers applies up to the original window: "same" for the last one,
            or "recovered" for the switch's scaling for that length (`ropewalk.export.cost.exported_scalings`).
        dtype: name of the floating-point type of the weights written; by default that in memory.
        files: further files that are copied into the folder, such as the card's pictures.

    Raises:
        ValueError: a scaling is for another rotary dimension, the model's class cannot apply it from a config or has no
            place for its query scales, what was written gives other logits, or ``folder`` holds something other than an
            export.
        OSError: the disk has too little space.
    """
    shape = rotary_shape(model)
    switch.check_rotary_dim(shape.rotary_dim)
    check_folder(folder)
    check_folding(model, switch.longest, path=str(folder))
    with folded(model, switch.longest):
        _export_folded(model, tokenizer, switch.without_query_scales, folder, card, short_factor, dtype, files)


def _export_folded(
    model: Any,
    tokenizer: Any,
    switch: LengthSwitch,
    folder: Path,
    card: str,
    short_factor: str,
    dtype: str | None,
    files: Iterable[Path],
) -> None:
    """`export_checkpoint` of a model whose weights hold the query scales."""
    config = _exported_config(model, switch, short_factor)
    written_dtype = getattr(torch, dtype) if dtype else model.dtype
    check_space(folder, _weights_size(model, written_dtype) + BESIDE_WEIGHTS)
    window, target = model.config.get_text_config().max_position_embeddings, switch.longest.target_length
    with writing(folder) as aside:
        aside.mkdir()
        _save_model(model, config, aside, written_dtype)
        tokenizer.save_pretrained(aside)
        _set_key(aside / "tokenizer_config.json", "model_max_length", target)
        generation = aside / "generation_config.json"
        if generation.is_file() and read_json(generation).get("max_length") == window:
            _set_key(generation, "max_length", target)
        write_text(aside / "README.md", card)
        write_text(aside / SWITCH_FILE, switch.to_json())
        for file in files:
            shutil.copyfile(file, aside / file.name)
        loaded = _reloaded(model, switch, aside)
        check_same_weights(model, loaded, path=str(folder), dtype=written_dtype)
        _check_logits(model, loaded, switch, short_factor, folder)


def _reloaded(model: Any, switch: LengthSwitch, folder: Path) -> Any:
    """The export in ``folder`` as plain transformers loads it, in the dtype, device and attention of ``model``."""
    trust = {"trust_remote_code": True} if model.is_remote_code() else {}
    attention = model.config._attn_implementation
    return load_plain(folder, switch, dtype=model.dtype, attn_implementation=attention, **trust).to(model.device)


def _check_logits(model: Any, loaded: Any, switch: LengthSwitch, short_factor: str, folder: Path) -> None:
    """Raise ValueError unless the export for ``folder``, as ``loaded``, gives the logits that ``model`` has in memory.

    n_hat, and all scalings but one or two, are applied by `load_extended` alone.
    """
    window = switch.longest.original_length
    short, long = exported_scalings(switch, short_factor)
    # Shorter inputs come last: they leave transformers' modules with the tables that a new model has.
    check_reloaded(model, loaded, {2 * window: long, window: short}, path=str(folder), by="plain transformers")
    by_length = apply_by_length(loaded, switch, folder)
    exact = {length: switch.for_length(length) for length in (window, 2 * window)}
    check_reloaded(model, by_length, exact, path=str(folder), by="load_extended")


def check_folder(folder: Path) -> None:
    """Raise ValueError where ``folder`` is a file, or holds something other than an export."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to export to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SWITCH_FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no earlier export; give another folder, or empty this one")


def check_space(folder: Path, size: int) -> None:
    """Raise OSError unless the disk that ``folder`` will be on has room for ``size`` bytes."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OSError(
            f"{folder} needs {_mib(size)} and its disk has {_mib(free)} left; free some, or give another folder"
        )


def _weights_size(model: Any, dtype: torch.dtype) -> int:
    # Tied weights are one tensor under two names, which is written once.
    sizes: dict[int, int] = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    return sum(sizes.values()) * dtype.itemsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _exported_config(model: Any, switch: LengthSwitch, short_factor: str) -> Any:
    """The config to write; raises ValueError where the model's class does not apply the two scalings from it."""
    short, long = exported_scalings(switch, short_factor)
    up_to_window = long if short_factor == SAME else switch.for_length(long.original_length)
    try:
        return longrope_config(model, short=short, long=long, short_attention_factor=up_to_window.attention_factor)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} cannot be exported: {error}") from None


def _save_model(model: Any, config: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write weights in ``dtype`` and ``config``; save_pretrained alone would write both as they are in memory."""
    # save_pretrained writes model.config and changes it, so it is replaced for the time being.
    original, model.config = model.config, config
    try:
        model.save_pretrained(folder, state_dict=_cast(model, dtype))
    finally:
        model.config = original
    _set_key(folder / "config.json", "dtype", str(dtype).removeprefix("torch."))


def _cast(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's weights in ``dtype``, except those that its class always keeps in float32 (biases of routers)."""
    float32_patterns = [f"*{name}*" for name in model._get_dtype_plan(dtype)]
    tensors: dict[str, torch.Tensor] = model.state_dict()
    # Tied weights stay one tensor.
    cast: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not any(fnmatch.fnmatch(name, pattern) for pattern in float32_patterns):
            tensors[name] = cast.setdefault(tensor.data_ptr(), tensor.to(dtype))
    return tensors


def _set_key(file: Path, key: str, value: Any) -> None:
    """Set a key of a JSON file."""
    write_json(file, {**read_json(file), key: value})
