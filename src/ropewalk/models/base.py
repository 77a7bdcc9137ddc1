"""The model to extend: a local transformers checkpoint or a hub id, weights as safetensors only."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from ropewalk.files import file_hash
from ropewalk.models.published import published_scaling
from ropewalk.rope import LengthSwitch, RopeScaling, rotary_shape, switch_from_json, switch_to_json

log = logging.getLogger(__name__)

FROM_CHECKPOINT, FROM_PLAIN = "checkpoint", "plain"
"""What ``model.start`` says an extension starts from: the scaling that the checkpoint came with, or plain RoPE."""


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint and what the later stages need to know of it."""

    name: str
    path: str
    weights_sha256: str
    """Of the weight files' hashes; empty for a hub id, which its own revision names."""
    original_length: int
    """Window before any scaling, in tokens."""
    rotary_dim: int
    base: float
    parameters: int
    vocab_size: int
    start: LengthSwitch = ()
    """Scalings that the checkpoint came with and that the road starts from; empty for plain RoPE."""

    def to_dict(self) -> dict[str, Any]:
        """For base.json; `own_switch`, `own_scaling` and `own_window` read it."""
        values = {key: value for key, value in asdict(self).items() if key != "start"}
        if not self.start:
            return values
        return {**values, "window": self.start[-1][0], "start": json.loads(switch_to_json(self.start))}


def own_switch(base: Mapping[str, Any]) -> LengthSwitch:
    """The scalings in base.json that the checkpoint came with; empty where the road starts from plain RoPE."""
    return switch_from_json(json.dumps(base["start"])) if "start" in base else ()


def own_scaling(base: Mapping[str, Any]) -> RopeScaling | None:
    """The one of `own_switch` for the longest inputs, which everything that is found is composed with."""
    return switch[-1][1] if (switch := own_switch(base)) else None


def own_window(base: Mapping[str, Any]) -> int:
    """Window in tokens that the model has before the road: the original one, or its own scaling's."""
    return int(base.get("window", base["original_length"]))


def _named(name: str, path: str) -> str:
    """The configuration's name; for model=hf, whose name says nothing, the hub id or that of the folder."""
    if name != "hf":
        return name
    return Path(path).resolve().name if Path(path).is_dir() else path


def _check_path(path: str) -> None:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"model.path {path} holds no config.json; give a folder that transformers saved")
        if not list(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"model.path {path} holds no .safetensors weights; convert the checkpoint first")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or folder.parent.is_dir():
        raise FileNotFoundError(f"model.path {path} is not there; give a folder with a transformers checkpoint")


def start_of(path: str, *, start: str, original_length: int | None) -> LengthSwitch:
    """The scalings that the checkpoint came with, where the road starts from them; empty for plain RoPE.

    Args:
        start: ``model.start``, FROM_CHECKPOINT or FROM_PLAIN.
        original_length: ``model.original_length``.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: its scaling is of no known kind, or ``original_length`` contradicts it.
    """
    if start == FROM_PLAIN:
        return ()
    _check_path(path)
    try:
        config = Path(path) if Path(path).is_dir() else Path(str(cached_file(path, "config.json")))
        found = published_scaling(config).start
    except OSError as error:
        raise ValueError(f"model.path {path}: its config.json cannot be read: {_first_line(error)}") from None
    except ValueError as error:
        raise ValueError(
            f"model.path {path}: {_first_line(error)}; model.start=plain starts without the checkpoint's scaling"
        ) from None
    if found and original_length not in (None, found[-1][1].original_length):
        raise ValueError(
            f"model.original_length is {original_length}, but the checkpoint's {found[-1][1].method} scaling starts "
            f"from {found[-1][1].original_length} tokens; leave it out, or give model.start=plain"
        )
    return found


def window_before(path: str, *, start: str, original_length: int | None, trust_remote_code: bool = False) -> int:
    """Window in tokens that the road leads out of, as `own_window`, from the checkpoint's config alone.

    Raises:
        FileNotFoundError, ValueError: as `window_of` and `start_of`.
    """
    if found := start_of(path, start=start, original_length=original_length):
        return found[-1][0]
    return original_length or window_of(path, trust_remote_code=trust_remote_code)


def window_of(path: str, *, trust_remote_code: bool = False) -> int:
    """Window in tokens that the checkpoint's config states, before any scaling it already has.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: its config cannot be read, or states no window.
    """
    _check_path(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path {path}: its config.json cannot be read: {_first_line(error)}") from None
    parameters = getattr(config, "rope_parameters", None) or {}
    window = parameters.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
    if window is None:
        raise ValueError(f"model.path {path}: its config.json states no max_position_embeddings")
    return int(window)


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "contains custom code" in line:
        return "its code comes with the checkpoint; read it, and set model.trust_remote_code=true if you trust it"
    return line


def load_model(
    path: str, *, dtype: str = "float32", trust_remote_code: bool = False, keep_sliding_window: bool = False
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Args:
        trust_remote_code: run the model's code where it comes with the checkpoint.
        keep_sliding_window: leave attention to the last tokens only, where the checkpoint has it. Otherwise it is
            turned off, as LongRoPE does for Mistral: a model that never looks back further needs no extension.

    Raises:
        FileNotFoundError: no checkpoint there, or none with safetensors weights.
        ValueError: the checkpoint cannot be read or lacks weights, or its rotary table is not one that can be extended.
    """
    _check_path(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not keep_sliding_window and (sliding := _turn_off_sliding_window(config)):
            log.warning(
                "%s attends to the last %d tokens only; this is turned off, so longer inputs give something else",
                path,
                sliding,
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model.path {path} cannot be loaded: {_first_line(error)}") from None
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        # transformers only warns, and goes on with random numbers in their place.
        raise ValueError(f"model.path {path} lacks {len(missing)} weights ({missing[0]}, …); get the checkpoint again")
    rotary_shape(model)
    # A process among several trains on a device of its own, which Lightning moves or splits the weights to.
    alone = "LOCAL_RANK" not in os.environ
    device = "cuda" if alone and torch.cuda.is_available() else "cpu"
    return model.to(device).eval()  # type: ignore[no-any-return, arg-type]


def _turn_off_sliding_window(config: Any) -> int | None:
    """Let every layer attend to all tokens; returns the window in tokens that was turned off, if any."""
    sliding: int | None = getattr(config, "sliding_window", None)
    if sliding is None:
        return None
    config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * len(config.layer_types)
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False
    return sliding


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        FileNotFoundError: the checkpoint has none.
    """
    _check_path(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"model.path {path} has no tokenizer that can be loaded ({_first_line(error)}); save one beside it"
        ) from None
    return tokenizer


def check_same_model(model: PreTrainedModel, base: dict[str, Any], *, path: str) -> None:
    """Raise ValueError unless the model loaded from ``path`` is of the architecture of the stage base's ``base``."""
    shape = rotary_shape(model)
    found = {
        "parameters": model.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "rotary_dim": shape.rotary_dim,
        "base": shape.base,
    }
    for key, value in found.items():
        if value != base[key]:
            raise ValueError(
                f"{path} is a checkpoint of another architecture than {base['path']}: {key} {value} where that "
                f"has {base[key]}; run the earlier stages again"
            )


def describe(
    model: PreTrainedModel, *, name: str, path: str, original_length: int | None, start: str = FROM_CHECKPOINT
) -> BaseModel:
    """What ``path`` holds, ``model`` being loaded from it; raises as `start_of`."""
    shape = rotary_shape(model)
    weights = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return BaseModel(
        name=_named(name, path),
        path=path,
        weights_sha256="".join(file_hash(weight) for weight in weights),
        original_length=original_length or shape.original_length,
        rotary_dim=shape.rotary_dim,
        base=shape.base,
        parameters=model.num_parameters(),
        vocab_size=model.config.vocab_size,
        start=start_of(path, start=start, original_length=original_length),
    )


def trained_under(checkpoint: Path, *, short: bool = False) -> RopeScaling | None:
    """What a checkpoint of fine-tuning was trained under, if it says so.

    Args:
        short: the same for inputs of the original window, which only a training with mixed windows has.
    """
    path = checkpoint / ("short_scaling.json" if short else "scaling.json")
    return RopeScaling.from_json(path.read_text()) if path.is_file() else None
