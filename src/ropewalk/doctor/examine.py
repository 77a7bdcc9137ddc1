"""Compares a runtime's losses on a text with those of the same weights under the stated scaling and plain RoPE."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.config import DoctorConfig
from ropewalk.doctor.diagnosis import Diagnosis, Losses, Verdict, bins_of, finite, is_same, judged
from ropewalk.doctor.reference import Reference
from ropewalk.doctor.runtimes import LLAMA_CPP, PACKAGES, TRANSFORMERS, installed, llama_cpp_losses, model_losses
from ropewalk.doctor.text import text_ids
from ropewalk.models.base import load_tokenizer
from ropewalk.models.memory import is_out_of_memory
from ropewalk.models.reasons import reason
from ropewalk.models.source import Source
from ropewalk.rope import RopeScaling, extended, rotary_shape
from ropewalk.rope.methods import inverse_frequencies

log = logging.getLogger(__name__)

_TOLERANCE = 0.005
"""Mean distance of losses, in nats, between two computations in float32 or with weights in half precision."""
_QUANTISED = 0.12
"""The same where llama.cpp computes with quantised weights, to which it quantises activations too."""


def examine(config: DoctorConfig, *, trust_remote_code: bool = False) -> list[Diagnosis]:
    """A diagnosis for every runtime that ``config`` asks for.

    Raises:
        FileNotFoundError: there is no such checkpoint, reference or text.
        ValueError: the runtime is not installed, the reference states no scaling, or the text is too short.
    """
    if config.model == DoctorConfig.model and not Path(config.model).is_dir():
        raise FileNotFoundError(
            f"{config.model} is not there; run `dvc repro` up to the stage export, or give doctor.model"
        )
    _check_place(config.model, "doctor.model")
    _check_place(path := reference_path(config), "doctor.reference")
    runtimes = _runtimes(config)
    reference = Reference.read(path, length=config.length, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(reference.path, trust_remote_code=trust_remote_code)
    ids = text_ids(tokenizer, length=reference.length, path=config.text)
    if len(ids) < reference.length:
        length_found = f"doctor.text {config.text} has {len(ids):,} tokens"
        if config.length is not None:
            raise ValueError(
                f"{length_found}, and doctor.length asks for {config.length:,}; give a longer text or lower it"
            )
        if len(ids) <= reference.window:
            raise ValueError(
                f"{length_found}, which the window of {reference.window:,} holds without scaling; give a longer text"
            )
        reference = Reference.read(reference.path, length=len(ids), trust_remote_code=trust_remote_code)
    return [diagnose(config.model, ids, reference, runtime=runtime) for runtime in runtimes]


def _check_place(path: str, key: str) -> None:
    """Raise FileNotFoundError, naming the ``key``, where there is no checkpoint at ``path``."""
    try:
        Source.at(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("model.path", key)) from None


def reference_path(config: DoctorConfig) -> str:
    """Where the right scaling is stated: doctor.reference, or the model's own folder."""
    if config.reference is not None:
        return config.reference
    place = Path(config.model)
    if place.suffix != ".gguf":
        return config.model
    if not (place.parent / "config.json").is_file():
        raise ValueError(
            f"doctor.reference must be given with {place}, the checkpoint that it was made from: its folder has no "
            "config.json, and a file cannot say which factors it lacks"
        )
    return str(place.parent)


def _runtimes(config: DoctorConfig) -> list[str]:
    """The runtimes that are asked for; by default those that are installed and that can read the model."""
    names = installed()
    if config.runtime is not None:
        if config.runtime not in names:
            raise ValueError(f"doctor.runtime={config.runtime}: {PACKAGES[config.runtime]} is not installed")
        if config.runtime == LLAMA_CPP:
            gguf_file(config.model)
        return [config.runtime]
    place = Path(config.model)
    if place.suffix == ".gguf":
        return [name for name in names if name == LLAMA_CPP] or names
    has_gguf = place.is_dir() and any(place.glob("*.gguf"))
    return [name for name in names if name != LLAMA_CPP or has_gguf]


def diagnose(path: str, ids: Sequence[int], reference: Reference, *, runtime: str) -> Diagnosis:
    """What ``runtime`` makes of the checkpoint at ``path``, on the tokens ``ids``.

    Args:
        path: folder, hub id or GGUF file; of a folder, llama.cpp reads the GGUF file.
        runtime: one of `ropewalk.doctor.runtimes.PACKAGES`.

    Raises:
        FileNotFoundError: there is no such checkpoint, or none for llama.cpp.
        ValueError: the runtime or transformers cannot load it, or the reference is of another model.
    """
    if runtime == TRANSFORMERS:
        model = _loaded(path)
        log.info("reading %d tokens with transformers", len(ids))
        return diagnose_model(model, ids, reference)
    file = gguf_file(path)
    is_quantised = _is_quantised(file)
    log.info("reading %d tokens with llama.cpp", len(ids))
    losses = llama_cpp_losses(file, ids)
    # transformers reads no GGUF file with biases; in half precision the folder has the same weights.
    has_weights = any(Path(reference.path).glob("*.safetensors"))
    model = _loaded(str(file) if is_quantised or not has_weights else reference.path)
    tolerance = _QUANTISED if is_quantised else _TOLERANCE
    return _compared(LLAMA_CPP, losses, model, ids, reference, tolerance=tolerance)


def diagnose_model(model: Any, ids: Sequence[int], reference: Reference) -> Diagnosis:
    """What a transformers model in memory does, however it was loaded and changed since.

    Raises:
        ValueError: the reference is of another model.
    """
    losses = model_losses(model, ids, window=reference.window)
    return _compared(TRANSFORMERS, losses, model, ids, reference, tolerance=_TOLERANCE)


def gguf_file(path: str) -> Path:
    """The GGUF file at ``path`` or in that folder.

    Raises:
        FileNotFoundError: there is none, or there are several in the folder.
    """
    place = Path(path)
    files = sorted(place.glob("*.gguf")) if place.is_dir() else [place] if place.suffix == ".gguf" else []
    if len(files) != 1:
        what = (
            f"{len(files)} GGUF files, give one of them" if files else "no GGUF file, export with export.gguf=float16"
        )
        raise FileNotFoundError(f"doctor.model {path} has {what} or set doctor.runtime=transformers")
    return files[0]


def _loaded(path: str) -> Any:
    """The model as plain transformers loads it, on the accelerator where there is one."""
    try:
        return Source.at(path).model(dtype="float32").to("cuda" if torch.cuda.is_available() else "cpu").eval()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"doctor.model {path} cannot be loaded by transformers: {reason(error)}") from None


def _compared(
    runtime: str, losses: Tensor, model: Any, ids: Sequence[int], reference: Reference, *, tolerance: float
) -> Diagnosis:
    """Compare a runtime's ``losses`` with those of ``model``, which has the same weights, under other scalings."""

    def under(scaling: RopeScaling) -> Tensor:
        with extended(model, _on_model(model, scaling, reference)):
            return finite(model_losses(model, ids, window=reference.window))

    losses = finite(losses)
    read = Losses(losses, under(reference.scaling), under(reference.plain))
    verdict, explanation = judged(read, reference.window, tolerance=tolerance), ""
    if verdict is Verdict.ELSE:
        apart = [part.apart for part in bins_of(read, reference.window)]
        for hypothesis_verdict, hypotheses in (
            (Verdict.APPLIED, reference.allowed()),
            (Verdict.ELSE, reference.wrong()),
        ):
            for words, scaling in hypotheses:
                other = under(scaling)
                if not explanation and is_same(
                    losses, other, window=reference.window, tolerance=tolerance, apart=apart
                ):
                    verdict, explanation = hypothesis_verdict, words
                    read = Losses(losses, other, read.plain) if hypothesis_verdict is Verdict.APPLIED else read
    return Diagnosis(runtime, reference.window, read, tolerance, verdict, explanation)


def _on_model(model: Any, scaling: RopeScaling, reference: Reference) -> RopeScaling:
    """``scaling`` with the factors that give the reference's frequencies on ``model``, whose base may be another.

    Raises:
        ValueError: the model has another number of rotary pairs.
    """
    shape = rotary_shape(model)
    try:
        scaling.check_rotary_dim(shape.rotary_dim)
    except ValueError as error:
        raise ValueError(f"doctor.reference {reference.path} is of another model: {error}") from None
    if shape.base == reference.shape.base:
        return scaling
    theirs, ours = (inverse_frequencies(shape.rotary_dim, base) for base in (shape.base, reference.shape.base))
    factors = (factor * a / b for factor, a, b in zip(scaling.factors, theirs, ours, strict=True))
    return RopeScaling(
        tuple(factors),
        scaling.original_length,
        scaling.target_length,
        attention_factor=scaling.attention_factor,
        method=scaling.method,
    )


def _is_quantised(file: Path) -> bool:
    try:
        from gguf import GGMLQuantizationType, GGUFReader
    except ModuleNotFoundError:
        raise ValueError("doctor.runtime=llama_cpp needs the library gguf: pip install 'ropewalk[gguf]'") from None

    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
    return any(tensor.tensor_type not in plain for tensor in GGUFReader(file).tensors)
