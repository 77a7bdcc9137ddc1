"""Where a model is stored (``model.path``): a folder that transformers saved, a hub id, or one GGUF file.

transformers reads the weights of a GGUF file, its config and its vocabulary, but leaves out two parts, which this
module handles: the factors of a scaled rotary embedding, without which the model would be another one, and most of
llama.cpp's ways of splitting text.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils.hub import cached_file

from ropewalk.files import read_json
from ropewalk.models.hub import why_offline
from ropewalk.models.pretokenizers import by_name
from ropewalk.models.reasons import reason

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where a model is stored, as ``from_pretrained`` takes it."""

    path: str
    """Folder or hub id."""
    gguf_file: str | None = None
    """Name of a GGUF file in the folder, where that is the model."""
    hub_config: Path | None = None
    """config.json of a hub id, as fetched; None without a network, when the folder in the hub's cache is taken."""

    def __str__(self) -> str:
        return str(Path(self.path, self.gguf_file)) if self.gguf_file else self.path

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """The model at ``path``, the value of ``model.path``: a folder or the config.json in it, a GGUF file, a hub id.

        Raises:
            FileNotFoundError: there is nothing, or a folder without config.json; or the hub has no such model, or
                there is no connection and none in the hub's cache.
        """
        place = Path(path)
        if place.is_file():
            if place.suffix == ".gguf":
                return cls(str(place.parent), place.name)
            if place.name == "config.json":
                return cls(str(place.parent))
            raise FileNotFoundError(f"model.path {path} is a file; give the folder that transformers saved")
        if place.is_dir():
            if not (place / "config.json").is_file():
                file = next(iter(sorted(place.glob("*.gguf"))), None)
                hint = (
                    f"to read its GGUF file, give model.path={file}"
                    if file
                    else "give a folder that transformers saved"
                )
                raise FileNotFoundError(f"model.path {path} holds no config.json; {hint}")
            return cls(str(path))
        if not _HUB_ID.fullmatch(str(path)) or place.parent.is_dir():
            raise FileNotFoundError(
                f"model.path {path} is not there; give a folder with a transformers checkpoint, a GGUF file or a hub id"
            )
        config, is_fetched = _hub_config(str(path))
        return cls(str(path), hub_config=config) if is_fetched else cls(str(config.parent))

    @property
    def keywords(self) -> dict[str, str]:
        """Further arguments of ``from_pretrained``."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    @property
    def weights(self) -> list[Path]:
        """The files of the weights in their order; none for a hub id."""
        if self.gguf_file:
            return [Path(self.path, self.gguf_file)]
        return [] if self.hub_config else sorted(Path(self.path).glob("*.safetensors"))

    @property
    def config_file(self) -> Path:
        """The checkpoint's config.json."""
        return self.hub_config or Path(self.path, "config.json")

    def check_weights(self) -> None:
        """Check that local weights can be read, from the headers of their files.

        Raises:
            FileNotFoundError: there are no safetensors.
            ValueError: they are cut off or shards are missing, as after a broken download; or a GGUF file cannot be
                read, or its rotary embedding is scaled.
        """
        if self.gguf_file:
            _check_gguf(Path(self.path, self.gguf_file))
        elif not self.hub_config:
            if not self.weights:
                raise FileNotFoundError(
                    f"model.path {self} holds no .safetensors weights; convert the checkpoint first"
                )
            try:
                _check_whole(self.weights)
            except ValueError as error:
                raise ValueError(f"model.path {self}: {error}; get the checkpoint again") from None

    def model(self, **keywords: Any) -> Any:
        """The causal language model, loaded by transformers with plain weights.

        Raises:
            ValueError: weights are missing, are of other sizes than config.json states, or are ones that transformers
                leaves out, such as biases in a GGUF file.
            OSError, RuntimeError, safetensors.SafetensorError: transformers cannot load it.
        """
        if self.gguf_file:
            keywords |= {"quantization_config": GgufConfig(dequantize=True)}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            self.path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **self.keywords,
            **keywords,
        )
        model, info = loaded
        if mismatched := sorted(info["mismatched_keys"]):
            # transformers would initialise these at random, or refer to a report that it does not print.
            name, stored, stated = mismatched[0]
            raise ValueError(
                f"config.json states other sizes than its weights have: {name} is {tuple(stored)}, not "
                f"{tuple(stated)}; get both from the same checkpoint"
            )
        if missing := sorted(info["missing_keys"]):
            # transformers only warns, and initialises these weights at random.
            raise ValueError(f"it lacks {len(missing)} weights ({missing[0]}, …); get the checkpoint again")
        if self.gguf_file:
            # transformers silently drops weights that its config of the file has no place for, such as biases.
            count = len(set(_metadata(Path(self.path, self.gguf_file))[1]).difference(_FACTORS))
            if (read := len(list(model.parameters()))) < count:
                raise ValueError(f"transformers reads {read} of its {count} weights; give a folder of safetensors")
        return model

    def tokenizer(self, **keywords: Any) -> Any:
        """The tokenizer, loaded by transformers; that of a GGUF file splits text as llama.cpp does.

        Raises:
            ValueError: the file names a way of splitting that is not among `ropewalk.models.pretokenizers`.
            OSError, KeyError: transformers cannot load it.
        """
        if self.gguf_file is None:
            return AutoTokenizer.from_pretrained(self.path, **self.keywords, **keywords)
        metadata = _metadata(Path(self.path, self.gguf_file))[0]
        pre = by_name(name := metadata.get("tokenizer.ggml.pre", "default"))
        byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
        if byte_level and pre is None:
            raise ValueError(f"its pre-tokenizer {name} is not known; give a folder that transformers saved")
        tokenizer: Any = AutoTokenizer.from_pretrained(self.path, **self.keywords, **keywords)
        if byte_level and pre:
            tokenizer.backend_tokenizer.pre_tokenizer = pre.build()
            tokenizer.backend_tokenizer.model.ignore_merges = pre.ignore_merges
        return tokenizer


@cache
def _hub_config(name: str) -> tuple[Path, bool]:
    """config.json of a hub id, and whether it comes from the hub (asked once) or, offline, from the hub's cache.

    Offline, some of transformers' requests for further files ignore ``local_files_only``, so that the folder in the
    cache is taken in place of the hub id.
    """
    offline = why_offline()
    try:
        return Path(str(cached_file(name, "config.json", local_files_only=offline is not None))), offline is None
    except OSError as error:
        if not offline:
            raise FileNotFoundError(f"model.path {name}: {reason(error)}") from None
        raise FileNotFoundError(
            f"model.path {name} is no folder, and as a hub id it is not in {constants.HF_HUB_CACHE} while {offline}; "
            "give a folder, or fetch the model first"
        ) from None


def _check_whole(files: Sequence[Path]) -> None:
    """Raise ValueError where a file of weights is cut off, or one that the index names is missing."""
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"{file.name} is not a whole file of weights ({why})") from None
    index = files[0].with_name("model.safetensors.index.json")
    shards = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else set()
    if missing := sorted(shards - {file.name for file in files}):
        raise ValueError(f"its index names {missing[0]}, which is missing")


def _check_gguf(file: Path) -> None:
    missing = [library for library in ("gguf", "accelerate") if find_spec(library) is None]
    if missing:
        raise ValueError(f"model.path {file} needs {' and '.join(missing)} to be read: pip install 'ropewalk[gguf]'")
    metadata, tensors = _metadata(file)
    kind = metadata["general.architecture"]
    scales = {
        metadata.get(f"{kind}.rope.{key}", 1.0) for key in ("scaling.factor", "scale_linear", "scaling.attn_factor")
    }
    if any(name in tensors for name in _FACTORS) or scales - {0.0, 1.0}:
        raise ValueError(
            f"model.path {file} has a scaled rotary embedding, which transformers does not read from GGUF; give the "
            "folder of safetensors that it was converted from"
        )


def _metadata(file: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The keys of a GGUF file and the names of its tensors."""
    try:
        metadata, tensors = read_gguf_metadata(str(file))
        return metadata, tuple(tensors)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ValueError(f"model.path {file} cannot be read as GGUF: {reason(error)}") from None
