"""The model to extend: a local transformers checkpoint or a hub id with safetensors, or a GGUF file."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.files import file_hash, write_text
from ropewalk.models.memory import is_out_of_memory
from ropewalk.models.precision import check_computes_in
from ropewalk.models.published import (
    PublishedScaling,
    check_saved_alone,
    published_scaling,
    read_config,
    turn_off_sliding_window,
)
from ropewalk.models.reasons import reason
from ropewalk.models.source import Source
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, rotary_shape
from ropewalk.rope.json_value import JsonValue

log = logging.getLogger(__name__)

FROM_CHECKPOINT, FROM_PLAIN = "checkpoint", "plain"
"""Values of ``model.start``: an extension starts from the scaling that the checkpoint came with, or from plain RoPE."""


@dataclass(frozen=True)
class BaseModel(JsonValue):
    """The model to extend, as the stage base describes it to the later ones in base.json."""

    name: str
    path: str
    weights_sha256: str
    """The sha256 of every weight file, one after another; empty for a hub id, whose revision names its weights."""
    original_length: int
    """Window before any scaling, in tokens."""
    rotary_dim: int
    rope_theta: float
    """Base of the rotary frequencies."""
    parameters: int
    vocab_size: int
    dtype: str = "float32"
    """Floating-point type of the weights in the checkpoint, whatever they are computed in (``model.dtype``)."""
    start_switch: LengthSwitch | None = None
    """Scalings that the checkpoint came with and that the extension starts from; None for plain RoPE."""

    @property
    def shape(self) -> RotaryShape:
        return RotaryShape(self.rotary_dim, self.rope_theta, self.original_length)

    @property
    def start_scaling(self) -> RopeScaling | None:
        """The checkpoint's scaling for its longest inputs, which searched factors multiply; None for plain RoPE."""
        return self.start_switch.longest if self.start_switch else None

    @property
    def window(self) -> int:
        """Window in tokens before the extension: the original one, or that of the checkpoint's scaling."""
        return _window(self.start_switch, self.original_length)

    def to_dict(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "start_switch"}
        start = {"window": self.window, "start": self.start_switch.to_dict()} if self.start_switch else {}
        return values | start

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        start = LengthSwitch.from_dict(values["start"]) if "start" in values else None
        names = (item.name for item in fields(cls) if item.name in values)
        return cls(**{name: values[name] for name in names}, start_switch=start)

    def write(self, path: Path) -> None:
        write_text(path, self.to_json())


def window_before(path: str, *, start: str, original_length: int | None, trust_remote_code: bool = False) -> int:
    """Window in tokens before the extension (`BaseModel.window`), from the checkpoint's config alone.

    Args:
        start: ``model.start``, FROM_CHECKPOINT or FROM_PLAIN.
        original_length: ``model.original_length``, which is taken in place of the window that config.json states.

    Raises:
        FileNotFoundError: there is no checkpoint at ``path``.
        ValueError: its config cannot be read, or its model cannot be extended.
    """
    published = _published(path, original_length, trust_remote_code)
    return _window(None if start == FROM_PLAIN else published.start, published.shape.original_length)


def _window(start: LengthSwitch | None, original_length: int) -> int:
    """The window in tokens that an extension starts from: that of the checkpoint's scaling, or the original one."""
    return start.lengths[-1] if start else original_length


def _published(path: str, original_length: int | None, trust_remote_code: bool) -> PublishedScaling:
    Source.at(path).check_weights()
    published = published_scaling(path, original_length=original_length, trust_remote_code=trust_remote_code)
    if published.reading:
        log.warning("model.path %s: %s", path, published.reading)
    return published


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attention: str = "auto",
    trust_remote_code: bool = False,
    keep_sliding_window: bool = False,
    device: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, onto the accelerator where there is one.

    Args:
        attention: transformers' attention implementation, or auto: sdpa where the model's class supports it.
        trust_remote_code: run the model's code where it comes with the checkpoint.
        keep_sliding_window: keep sliding-window attention where the checkpoint has it. It is turned off otherwise, as
            LongRoPE does for Mistral: a model that never attends further back needs no extension.
        device: by default that of this process (`process_device`).

    Raises:
        FileNotFoundError: there is no checkpoint at ``path``, or none with safetensors weights.
        ValueError: the checkpoint cannot be read or lacks weights, its class or this machine does not support
            ``attention``, its rotary table is not one that can be extended, or ``dtype`` is bfloat16, which the GPU
            does not compute in.
    """
    device = device or process_device(os.environ, cards=torch.cuda.device_count())
    on_gpu = torch.device(device).type == "cuda"
    check_computes_in(dtype, key="model.dtype", device=device)
    if attention == "flex_attention" and not on_gpu:
        # Seen with torch 2.13: NaN or errors of several units in logits of 40 or 72 tokens, not the same in every run.
        raise ValueError(
            "model.attention=flex_attention: torch's kernel for processors gives wrong logits at some lengths; take "
            "model.attention=auto"
        )
    source = Source.at(path)
    source.check_weights()
    try:
        config = read_config(path, trust_remote_code=trust_remote_code)
        if not keep_sliding_window and (sliding := turn_off_sliding_window(config)):
            log.warning(
                "%s attends to the last %d tokens only; this is turned off, so longer inputs give something else",
                path,
                sliding,
            )
        model: PreTrainedModel = source.model(
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            attn_implementation=None if attention == "auto" else attention,
        )
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        if attention != "auto" and "ttention" in str(error):
            sentence = reason(error).partition(". ")[0].rstrip(".")
            raise ValueError(f"model.attention={attention}: {sentence}; take model.attention=auto") from None
        raise ValueError(f"model.path {path} cannot be loaded: {reason(error)}") from None
    try:
        rotary_shape(model)
        check_saved_alone(model, config)
    except ValueError as error:
        raise ValueError(f"model.path {path}: {error}") from None
    is_eager = model.config._attn_implementation == "eager"
    if attention == "auto" and on_gpu and is_eager and model._supports_flex_attn:
        # The class has soft caps or sinks, which eager attention computes in the memory of all scores.
        model.set_attn_implementation("flex_attention")
    return model.to(device).eval()  # type: ignore[no-any-return, arg-type]


def process_device(environ: Mapping[str, str], *, cards: int) -> str:
    """The device of this process: where it sees several cards, the one of its rank on the machine, or torch's current.

    Args:
        environ: variables of the environment; torchrun and Lightning tell the rank in LOCAL_RANK, and srun in
            SLURM_LOCALID.
        cards: number of accelerators that the process sees, which is 1 where Slurm binds one to each task.
    """
    if not cards:
        return "cpu"
    rank = environ.get("LOCAL_RANK") or environ.get("SLURM_LOCALID")
    return f"cuda:{int(rank) % cards}" if rank else "cuda"


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer.

    Raises:
        FileNotFoundError: the checkpoint has none that can be loaded.
    """
    source = Source.at(path)
    try:
        tokenizer: PreTrainedTokenizerBase = source.tokenizer(trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"model.path {path} has no tokenizer that can be loaded ({reason(error)}); save one beside it"
        ) from None
    return tokenizer


def check_same_model(model: PreTrainedModel, base: BaseModel, *, path: str) -> None:
    """Raise ValueError unless ``model``, which was loaded from ``path``, has the architecture of ``base``."""
    shape = rotary_shape(model)
    architecture = {
        "parameters": model.num_parameters(),
        "vocab_size": model.config.get_text_config().vocab_size,
        "rotary_dim": shape.rotary_dim,
        "rope_theta": shape.base,
    }
    for key, value in architecture.items():
        if value != getattr(base, key):
            raise ValueError(
                f"{path} is a checkpoint of another architecture than {base.path}: {key} {value} where that "
                f"has {getattr(base, key)}; run the earlier stages again"
            )


def describe(
    model: PreTrainedModel,
    *,
    name: str,
    path: str,
    original_length: int | None,
    start: str = FROM_CHECKPOINT,
    trust_remote_code: bool = False,
) -> BaseModel:
    """Describe ``model``, which was loaded from ``path``.

    Args:
        name: name of the configuration; in place of hf, which says nothing of the model, the name of the folder or
            file or the hub id is taken.
        original_length: ``model.original_length``; by default the window that the checkpoint's config states.
        start: as in `window_before`, whose errors this raises.
    """
    published = _published(path, original_length, trust_remote_code)
    if name == "hf":
        name = Path(path).resolve().name if Path(path).exists() else path
    return BaseModel(
        name=name,
        path=path,
        weights_sha256="".join(file_hash(weight) for weight in Source.at(path).weights),
        original_length=published.shape.original_length,
        rotary_dim=published.shape.rotary_dim,
        rope_theta=published.shape.base,
        parameters=model.num_parameters(),
        vocab_size=model.config.get_text_config().vocab_size,
        dtype=str(read_config(path, trust_remote_code=trust_remote_code).dtype or model.dtype).removeprefix("torch."),
        start_switch=None if start == FROM_PLAIN else published.start,
    )


def extended_path(base: BaseModel, checkpoints: Path) -> str:
    """Path of the model whose window is extended: the fine-tuned one, or the base model where none was trained."""
    tuned = checkpoints / "finetune_second"
    return str(tuned) if (tuned / "config.json").is_file() else base.path


def trained_under(checkpoint: Path) -> RopeScaling | None:
    """The scaling that a checkpoint of fine-tuning was trained under, None where it does not say."""
    path = checkpoint / "scaling.json"
    return RopeScaling.read(path) if path.is_file() else None
