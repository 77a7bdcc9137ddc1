"""An exported Llama-shaped checkpoint as GGUF, for llama.cpp and what is built on it.

Names, shapes and keys are llama.cpp's (``conversion/llama.py``, ``src/models/llama.cpp``). One set of factors goes in
as ``rope_freqs``, which llama.cpp divides the frequencies by at every length; two sets as ``rope_factors_long`` and
``rope_factors_short``, of which it takes the long ones where its context is longer than the original window. The
attention factor is read from ``rope.scaling.attn_factor``.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ropewalk.export.checkpoint import BESIDE_WEIGHTS, check_space
from ropewalk.files import read_json, writing

_TYPES = {"float32": "F32", "float16": "F16"}


def export_gguf(folder: Path, path: Path, *, dtype: str = "float16") -> None:
    """Write the checkpoint in ``folder`` (`ropewalk.export.export_checkpoint`'s) to the GGUF file ``path``.

    Args:
        dtype: float16 or float32, of the matrices; vectors are float32.

    Raises:
        ValueError: the model is not Llama-shaped, its tokenizer is not a byte-level BPE, or the library gguf is not
            installed.
        OSError: the disk is full, or too full to begin.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError("a GGUF export needs the library gguf: pip install 'ropewalk[gguf]'") from None

    if dtype not in _TYPES:
        raise ValueError(f"a GGUF export is in {' or '.join(_TYPES)}, found {dtype}")
    config = read_json(folder / "config.json")
    _check_shape(config, folder)
    check_space(path, _size(folder, dtype) + BESIDE_WEIGHTS)
    with writing(path) as aside:
        writer = gguf.GGUFWriter(aside, "llama")
        try:
            _add_config(gguf, writer, config, dtype)
            _add_tokenizer(gguf, writer, folder, config)
            for name, tensor in _tensors(gguf, folder, config, dtype):
                writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _check_shape(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ValueError(f"{folder} holds a model of type {kind}; a GGUF export is for llama and mistral")
    if config.get("mlp_bias"):
        raise ValueError(f"{folder} holds a model with biases in its MLPs, which GGUF's llama does not have")
    if config.get("sliding_window"):
        raise ValueError(f"{folder} holds a model with sliding-window attention, which GGUF's llama does not have")


def _size(folder: Path, dtype: str) -> int:
    """Bytes of the weights."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count * np.dtype(dtype).itemsize


def _one_set(rope: dict[str, Any]) -> bool:
    return bool(rope["long_factor"] == rope["short_factor"])


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_config(gguf: Any, writer: Any, config: dict[str, Any], dtype: str) -> None:
    rope = config["rope_parameters"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "float32" else gguf.LlamaFileType.MOSTLY_F16)
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
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = gguf.RopeScalingType.NONE if _one_set(rope) else gguf.RopeScalingType.LONGROPE
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_attn_factors(rope["attention_factor"])


def _add_tokenizer(gguf: Any, writer: Any, folder: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in json.dumps(tokenizer["decoder"]):
        raise ValueError(
            f"{folder / 'tokenizer.json'} is not a byte-level BPE; convert this model with llama.cpp's own "
            "convert_hf_to_gguf.py"
        )
    added = {item["id"]: item for item in tokenizer.get("added_tokens", [])}
    by_id = {place: token for token, place in model["vocab"].items()} | {
        place: item["content"] for place, item in added.items()
    }
    tokens, types = [], []
    for place in range(config["vocab_size"]):
        special = place in added and added[place].get("special")
        tokens.append(by_id.get(place, f"[PAD{place}]"))
        kind = gguf.TokenType.NORMAL if place in by_id else gguf.TokenType.UNUSED
        types.append(gguf.TokenType.CONTROL if special else kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for key, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        value = config.get(key)
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            add(value)
    writer.add_add_bos_token(config.get("bos_token_id") is not None)


def _tensors(gguf: Any, folder: Path, config: dict[str, Any], dtype: str) -> Any:
    """(name, array) of every tensor, under GGUF's names."""
    rope = config["rope_parameters"]
    long, short = (np.asarray(rope[f"{which}_factor"], dtype=np.float32) for which in ("long", "short"))
    if _one_set(rope):
        yield "rope_freqs.weight", long
    else:
        yield "rope_factors_long.weight", long
        yield "rope_factors_short.weight", short
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config["tie_word_embeddings"]):
                    continue
                own = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if own is None:
                    raise ValueError(f"{file} holds {name}, which GGUF's llama does not have")
                array = tensors.get_tensor(name).float().numpy()
                if ".q_proj." in name:
                    array = _interleaved(array, heads)
                elif ".k_proj." in name:
                    array = _interleaved(array, config.get("num_key_value_heads") or heads)
                wide = array.ndim > 1 and dtype == "float16"
                yield own, array.astype(np.float16 if wide else np.float32)


def _interleaved(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head as llama.cpp rotates them: the two of a pair side by side, not half a head apart."""
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)
