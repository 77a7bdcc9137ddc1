"""An exported checkpoint as GGUF, for llama.cpp and what is built on it.

Names, shapes and keys are llama.cpp's (``conversion/*.py``, ``src/models/*.cpp``). A single set of factors is written
as ``rope_freqs``, by which llama.cpp divides the frequencies at every length; two sets are written as
``rope_factors_long`` and ``rope_factors_short``, of which it applies the long ones where its context is longer than the
original window. For architectures in which it applies no factors, only those can be written that are linear scaling,
another base or YaRN. It reads the attention factor from ``rope.scaling.attn_factor``.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from ropewalk.export.checkpoint import BESIDE_WEIGHTS, check_space
from ropewalk.files import writing
from ropewalk.models.gguf_tokenizer import vocabulary_of
from ropewalk.models.llama_cpp import Architecture, architecture_of
from ropewalk.rope import methods

Array = np.ndarray[Any, Any]

_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16"}


def export_gguf(folder: Path, path: Path, *, dtype: str = "float16") -> None:
    """Write the checkpoint in ``folder`` (`ropewalk.export.export_checkpoint`'s) to the GGUF file ``path``.

    Args:
        dtype: "float16" or "float32", the type of matrices; vectors are float32.

    Raises:
        ValueError: llama.cpp would compute something else from this model, its factors or its tokenizer, or the
            library gguf is not installed.
        OSError: the disk has too little space.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError("a GGUF export needs the library gguf: pip install 'ropewalk[gguf]'") from None

    if dtype not in _TYPES:
        raise ValueError(f"a GGUF export is in {' or '.join(_TYPES)}, found {dtype}")
    config = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    try:
        architecture = architecture_of(config)
        rope = _rope(architecture, config)
        tokenizer, stop = AutoTokenizer.from_pretrained(folder, local_files_only=True), config["eos_token_id"]
        vocabulary = vocabulary_of(
            tokenizer, size=config["vocab_size"], eos=stop[0] if isinstance(stop, list) else stop
        )
    except ValueError as error:
        raise ValueError(f"{folder} cannot be written as GGUF: {error}") from None
    check_space(path, _size(folder, dtype) + BESIDE_WEIGHTS)
    with writing(path) as aside:
        writer = gguf.GGUFWriter(aside, architecture.name)
        try:
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_file_type(gguf.LlamaFileType[_TYPES[dtype]])
            _add_config(writer, config)
            writer.add_rope_scaling_type(gguf.RopeScalingType[rope.kind])
            rope.write(writer)
            vocabulary.write(writer)
            for name, tensor in _tensors(gguf, architecture, folder, config, dtype):
                writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


@dataclass(frozen=True)
class _Rope:
    """Contents of the keys ``rope.*`` and the tensors of factors."""

    kind: str
    """A ``gguf.RopeScalingType``."""
    dimensions: int
    base: float
    original_length: int
    attention_factor: float
    linear_factor: float = 1.0
    tensors: Mapping[str, list[float]] = field(default_factory=dict)

    def write(self, writer: Any) -> None:
        writer.add_rope_dimension_count(self.dimensions)
        writer.add_rope_freq_base(self.base)
        writer.add_rope_scaling_factor(self.linear_factor)
        writer.add_rope_scaling_orig_ctx_len(self.original_length)
        writer.add_rope_scaling_attn_factors(self.attention_factor)
        for name, factors in self.tensors.items():
            writer.add_tensor(f"{name}.weight", np.asarray(factors, dtype=np.float32))


def _rope(architecture: Architecture, config: Mapping[str, Any]) -> _Rope:
    section = config["rope_parameters"]
    long, short = section["long_factor"], section["short_factor"]
    values = {
        "dimensions": 2 * len(long),
        "base": section["rope_theta"],
        "original_length": section["original_max_position_embeddings"],
        "attention_factor": section["attention_factor"],
    }
    if values["dimensions"] != _head_dim(config) and not architecture.partial_rotary:
        raise ValueError(f"GGUF's {architecture.name} rotates all {_head_dim(config)} dimensions of a head")
    if architecture.applies_factors:
        if architecture.has_rope_freqs and long == short:
            return _Rope("NONE", **values, tensors={"rope_freqs": long} if set(long) != {1.0} else {})
        return _Rope("LONGROPE", **values, tensors={"rope_factors_long": long, "rope_factors_short": short})
    if long == short:
        # Factors s * r**i are linear scaling by s and the base times r**pairs.
        steps = np.diff(np.log(long))
        if np.allclose(steps, steps.mean(), rtol=0, atol=1e-7):
            values["base"] *= math.exp(steps.mean() * len(long))
            return _Rope("LINEAR", **values, linear_factor=long[0])
        ratio = section["factor"]
        yarn = methods.yarn(
            rotary_dim=values["dimensions"],
            base=values["base"],
            original_length=values["original_length"],
            target_length=round(values["original_length"] * ratio),
        )
        if np.allclose(long, yarn.factors, rtol=1e-6):
            # llama.cpp multiplies what the file says with YaRN's own attention factor.
            values["attention_factor"] /= 1 + 0.1 * math.log(ratio)
            return _Rope("YARN", **values, linear_factor=ratio)
    raise ValueError(
        f"llama.cpp applies no rescale factors in {architecture.name} models, only linear scaling, another base or YaRN"
    )


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _size(folder: Path, dtype: str) -> int:
    """Bytes of the weights."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count * np.dtype(dtype).itemsize


def _add_config(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tensors(
    gguf: Any, architecture: Architecture, folder: Path, config: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Array]]:
    """Yield GGUF's name and the array of every weight."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config["tie_word_embeddings"]):
                    continue
                gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if gguf_name is None:
                    raise ValueError(f"{file} holds {name}, which GGUF's {architecture.name} does not have")
                array = tensors.get_tensor(name).float().numpy()
                if architecture.rotates_neighbours and ".q_proj." in name:
                    array = _interleaved(array, heads)
                elif architecture.rotates_neighbours and ".k_proj." in name:
                    array = _interleaved(array, config.get("num_key_value_heads") or heads)
                elif name.endswith("norm.weight"):
                    array = array + architecture.norm_offset
                is_half = array.ndim > 1 and dtype == "float16"
                yield gguf_name, array.astype(np.float16 if is_half else np.float32)


def _interleaved(array: Array, heads: int) -> Array:
    """Reorder each head's rows as llama.cpp rotates them: the two of a pair side by side, not half a head apart."""
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)
