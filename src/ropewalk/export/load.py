"""Loading an exported checkpoint with n_hat and the choice of factors by input length exact."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.export.checkpoint import SWITCH_FILE
from ropewalk.export.generation import generate_by_length
from ropewalk.rope import find_rotary
from ropewalk.rope.scaling import LengthSwitch, switch_from_json
from ropewalk.rope.switching import extend_by_length


def load_extended(path: str | Path, *, length: int | None = None, **from_pretrained_kwargs: Any) -> Any:
    """The transformers model in ``path``, a folder written by `ropewalk.export.export_checkpoint`.

    Its rotary module is a `ropewalk.rope.switching.SwitchingRotaryEmbedding`: every row of a batch gets the scaling
    for its own length, padding not counted. ``generate`` gives what it would give without a cache and for each row
    alone: where a row outgrows its scaling, the batch is read once more under the next one.

    Args:
        length: fix the scaling to the one for inputs of so many tokens. Needed where a prompt is read in chunks
            (generate's ``prefill_chunk_size``) across a change of scaling, useful where a short prompt gets a long
            continuation.
        from_pretrained_kwargs: passed on to ``AutoModelForCausalLM.from_pretrained`` (dtype, device_map, ...).

    Raises:
        FileNotFoundError: the folder or a file of it is not there.
        ValueError: the weights are not whole safetensors, or the factors are for another rotary dimension.
    """
    path = Path(path)
    switch = _read_switch(path)
    _check_weights(path)
    _check_factors(path, switch)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, local_files_only=True, use_safetensors=True, output_loading_info=True, **from_pretrained_kwargs
    )
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"{path} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}; export the model again"
        )
    model = generate_by_length(extend_by_length(model, switch))
    if length is not None:
        find_rotary(model)[1].held_length = length  # type: ignore[assignment]
    return model


def exported_switch(path: str | Path) -> LengthSwitch | None:
    """The length switch of a folder that `ropewalk.export.export_checkpoint` wrote, None for another folder."""
    file = Path(path) / SWITCH_FILE
    return _read_switch(Path(path)) if file.is_file() else None


def _read_switch(path: Path) -> LengthSwitch:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder that the export stage wrote")
    for name in (SWITCH_FILE, "config.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} has no {name}, so it is not an exported model; run the export stage")
    try:
        return switch_from_json((path / SWITCH_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / SWITCH_FILE}: {error}") from None


def _check_weights(path: Path) -> None:
    found = sorted(path.glob("*.safetensors"))
    if not found:
        others = ", ".join(sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)))
        if others:
            raise ValueError(
                f"{path} holds {others} but no safetensors; only safetensors are loaded, export the model again"
            )
        raise FileNotFoundError(f"{path} has no *.safetensors; export the model again")
    for file in found:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({_one_line(error)}); export the model again"
            ) from None


def _check_factors(path: Path, switch: LengthSwitch) -> None:
    """Before the weights are read, since transformers fails on a wrong count with a message about tensor shapes."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        raise ValueError(f"{path / 'config.json'}: {_one_line(error)}") from None
    parameters = config.rope_parameters or {}
    if parameters.get("rope_type") != "longrope":
        raise ValueError(
            f"{path / 'config.json'} has rope_type {parameters.get('rope_type')}, an exported model has longrope"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    for key in ("short_factor", "long_factor"):
        if len(parameters[key]) != rotary_dim // 2:
            raise ValueError(
                f"{path / 'config.json'} has {len(parameters[key])} numbers in {key}, but the model has {rotary_dim} "
                f"rotary dimensions and needs {rotary_dim // 2}"
            )
    try:
        for _, scaling in switch:
            scaling.check_rotary_dim(rotary_dim)
    except ValueError as error:
        raise ValueError(f"{path / SWITCH_FILE}: {error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
