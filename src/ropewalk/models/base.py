"""The model to extend: a local transformers checkpoint or a hub id, weights as safetensors only."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ropewalk.files import file_hash
from ropewalk.rope import rotary_shape

logging.set_verbosity_error()


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
    """Window in tokens that the checkpoint's config states, before any scaling it already has."""
    _check_path(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    parameters = getattr(config, "rope_parameters", None) or {}
    return int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)


def load_model(path: str, *, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises:
        FileNotFoundError: no checkpoint there, or none with safetensors weights.
        ValueError: the checkpoint cannot be read, or its rotary table is not one that can be extended.
    """
    _check_path(path)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"model.path {path} cannot be loaded: {str(error).splitlines()[0]}") from None
    rotary_shape(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
            f"model.path {path} has no tokenizer that can be loaded ({str(error).splitlines()[0]}); save one beside it"
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
