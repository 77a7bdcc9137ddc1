"""The model to extend: a local transformers checkpoint or a hub id, weights as safetensors only."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.files import file_hash
from ropewalk.rope import rotary_shape


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint and what the later stages need to know of it."""

    name: str
    path: str
    weights_sha256: str
    """Of the weight files' hashes; empty for a hub id, which its own revision names."""
    original_length: int
    rotary_dim: int
    base: float
    parameters: int
    vocab_size: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_path(path: str) -> None:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"model.path {path} holds no config.json; give a folder that transformers saved")
        if not list(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"model.path {path} holds no .safetensors weights; convert the checkpoint first")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or folder.parent.is_dir():
        raise FileNotFoundError(f"model.path {path} is not there; give a folder with a transformers checkpoint")


def window_of(path: str) -> int:
    """Window in tokens that the checkpoint's config states, before any scaling it already has.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: its config cannot be read, or states no window.
    """
    _check_path(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path {path}: its config.json cannot be read: {_first_line(error)}") from None
    parameters = getattr(config, "rope_parameters", None) or {}
    window = parameters.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
    if window is None:
        raise ValueError(f"model.path {path}: its config.json states no max_position_embeddings")
    return int(window)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def load_model(path: str, *, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises:
        FileNotFoundError: no checkpoint there, or none with safetensors weights.
        ValueError: the checkpoint cannot be read or lacks weights, or its rotary table is not one that can be extended.
    """
    _check_path(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
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


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        FileNotFoundError: the checkpoint has none.
    """
    _check_path(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"model.path {path} has no tokenizer that can be loaded ({_first_line(error)}); save one beside it"
        ) from None
    return tokenizer


def describe(model: PreTrainedModel, *, name: str, path: str, original_length: int | None) -> BaseModel:
    shape = rotary_shape(model)
    weights = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return BaseModel(
        name=name,
        path=path,
        weights_sha256="".join(file_hash(weight) for weight in weights),
        original_length=original_length or shape.original_length,
        rotary_dim=shape.rotary_dim,
        base=shape.base,
        parameters=model.num_parameters(),
        vocab_size=model.config.vocab_size,
    )
