"""Loading an exported checkpoint with exact n_hat and choice of factors by input length."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ropewalk.export.generation import generate_by_length
from ropewalk.models.longrope_config import AT_REST
from ropewalk.models.memory import is_out_of_memory
from ropewalk.models.reasons import reason
from ropewalk.models.source import Source
from ropewalk.rope import LengthSwitch, find_rotary
from ropewalk.rope.switching import extend_by_length
from ropewalk.rope.windows import rope_sections

SWITCH_FILE = "ropewalk.json"
"""File of an export that holds its whole length switch, with n_hat, for which transformers has no field."""


def load_extended(path: str | Path, *, length: int | None = None, **from_pretrained_kwargs: Any) -> Any:
    """Load the transformers model in ``path``, a folder written by `ropewalk.export.export_checkpoint`.

    Its rotary module is a `ropewalk.rope.switching.SwitchingRotaryEmbedding`: every row of a batch gets the scaling
    for its length without padding. ``generate`` returns what it would return without a cache and for each row alone:
    where a row outgrows its scaling, the batch is read again under the next one.

    Args:
        length: input length in tokens to fix the scaling for. It is needed where a prompt is read in chunks (generate's
            ``prefill_chunk_size``) across a change of scaling, and useful where a short prompt gets a long
            continuation.
        from_pretrained_kwargs: arguments of ``AutoModelForCausalLM.from_pretrained`` (dtype, device_map, ...).

    Raises:
        FileNotFoundError: the folder, or a file in it, is not there.
        ValueError: the weights are not whole safetensors, or the factors are for another rotary dimension.
    """
    path = Path(path)
    switch = read_switch(path)
    model = apply_by_length(load_plain(path, switch, **from_pretrained_kwargs), switch, path)
    if length is not None:
        find_rotary(model)[1].held_length = length  # type: ignore[assignment]
    return model


def apply_by_length(model: Any, switch: LengthSwitch, path: Path) -> Any:
    """Make a model that `load_plain` loaded from ``path`` apply ``switch``; raises ValueError as `load_extended`."""
    try:
        model = generate_by_length(extend_by_length(model, switch))
    except ValueError as error:
        raise ValueError(f"{path / SWITCH_FILE}: {error}") from None
    rotary: Any = find_rotary(model)[1]
    factors = _longrope_section(model.config)["long_factor"]
    # Without the kind of RoPE that the export replaced, the class no longer says which pairs are at rest.
    rotary.inv_freq[torch.tensor(factors) >= AT_REST] = 0
    return model


def load_plain(path: Path, switch: LengthSwitch, **from_pretrained_kwargs: Any) -> Any:
    """The model in an exported folder as plain transformers loads it; arguments and errors as in `load_extended`."""
    _check_weights(path)
    _check_factors(path, switch, trust_remote_code=bool(from_pretrained_kwargs.get("trust_remote_code")))
    try:
        return Source(str(path)).model(local_files_only=True, **from_pretrained_kwargs)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path} cannot be loaded: {reason(error)}") from None


def exported_switch(path: str | Path) -> LengthSwitch | None:
    """The length switch of a folder written by `ropewalk.export.export_checkpoint`, None for any other folder."""
    file = Path(path) / SWITCH_FILE
    return read_switch(Path(path)) if file.is_file() else None


def read_switch(path: Path) -> LengthSwitch:
    """The length switch of an exported folder; raises FileNotFoundError where it is no such folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder that the export stage wrote")
    for name in (SWITCH_FILE, "config.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} has no {name}, so it is not an exported model; run the export stage")
    return LengthSwitch.read(path / SWITCH_FILE)


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path} has no *.safetensors, and nothing else is loaded; export the model again")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({reason(error)}); export the model again"
            ) from None


def _check_factors(path: Path, switch: LengthSwitch, *, trust_remote_code: bool) -> None:
    """Check the numbers of factors, where transformers would only report a mismatch of tensor shapes."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        raise ValueError(f"{path / 'config.json'}: {reason(error)}") from None
    rotary = _longrope_section(config)
    if rotary is None:
        raise ValueError(f"{path / 'config.json'} has no rope_type longrope, which an exported model has")
    pairs = switch.longest.rotary_dim // 2
    for key in ("short_factor", "long_factor"):
        if len(rotary[key]) != pairs:
            raise ValueError(
                f"{path / 'config.json'} has {len(rotary[key])} numbers in {key}, but the last scaling in "
                f"{path / SWITCH_FILE} has {pairs} factors; export the model again"
            )


def _longrope_section(config: Any) -> Any:
    """The part of a config's ``rope_parameters`` that an export writes, which may be that of one layer type."""
    return next((section for section in rope_sections(config) if section.get("rope_type") == "longrope"), None)
