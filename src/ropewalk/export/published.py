"""The scaling that a published checkpoint's config.json or a published table of factors holds.

config.json is read as it is, since transformers refuses some of the spellings that checkpoints came with: the key
``rope_scaling`` with ``type`` in place of ``rope_parameters`` with ``rope_type``, "su" for longrope, and the original
window beside the section in place of in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.files import read_json
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, methods

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class PublishedScaling:
    """What a checkpoint rotates by: one scaling, or for longrope one up to the original window and one beyond."""

    shape: RotaryShape
    switch: LengthSwitch

    @property
    def scaling(self) -> RopeScaling:
        """The one for the longest inputs; `RopeScaling.then` extends it further."""
        return self.switch[-1][1]


def published_scaling(path: str | Path) -> PublishedScaling:
    """Read the scaling of a checkpoint from its folder or config.json.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it states no rotary dimension or window, a kind of scaling that is not known, or a number of
            factors that is not the model's.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give a folder with a checkpoint, or its config.json")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold the configuration of a model, found {type(config).__name__}")
    config = config.get("text_config") or config
    try:
        return _read(config)
    except KeyError as error:
        raise ValueError(f"{file} lacks {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def published_table(path: str | Path, *, base: float, original_length: int, target_length: int) -> PublishedScaling:
    """A CSV table of factors, one row or one row per layer; raises ValueError as `RopeScaling.from_csv`."""
    scaling = RopeScaling.from_csv(path, original_length=original_length, target_length=target_length)
    shape = RotaryShape(scaling.rotary_dim, base, original_length)
    return PublishedScaling(shape, ((target_length, scaling),))


def _read(config: Mapping[str, Any]) -> PublishedScaling:
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in section.values()):
        raise ValueError("one scaling per layer type is not supported")
    kind = section.get("rope_type", section.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of scaling {kind!r}; known are {', '.join(_KINDS)}")
    shape = RotaryShape(
        _rotary_dim(config, section),
        float(section.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10_000.0)))),
        int(
            section.get("original_max_position_embeddings")
            or config.get("original_max_position_embeddings")
            or config["max_position_embeddings"]
        ),
    )
    if kind == "longrope":
        return PublishedScaling(shape, _longrope(config, section, shape))
    ratio = float(section["factor"]) if kind != "default" else 1.0
    sizes: dict[str, Any] = {
        "rotary_dim": shape.rotary_dim,
        "base": shape.base,
        "original_length": shape.original_length,
        "target_length": round(shape.original_length * ratio),
    }
    made = {
        "default": lambda: methods.none(**sizes),
        "linear": lambda: methods.pi(**sizes),
        "dynamic": lambda: methods.dynamic_ntk(**sizes, factor=ratio),
        "yarn": lambda: methods.yarn(
            **sizes,
            beta_fast=section.get("beta_fast") or 32.0,
            beta_slow=section.get("beta_slow") or 1.0,
            **{
                key: section[key]
                for key in ("truncate", "mscale", "mscale_all_dim", "attention_factor")
                if section.get(key) is not None
            },
        ),
        "llama3": lambda: methods.llama3(
            **sizes, low_freq_factor=section["low_freq_factor"], high_freq_factor=section["high_freq_factor"]
        ),
    }[kind]()
    return PublishedScaling(shape, ((made.target_length, made),))


def _rotary_dim(config: Mapping[str, Any], section: Mapping[str, Any]) -> int:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    share = section.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct")
    return int(head_dim * (share or 1.0))


def _longrope(config: Mapping[str, Any], section: Mapping[str, Any], shape: RotaryShape) -> LengthSwitch:
    original = shape.original_length
    target = round(original * section["factor"]) if section.get("factor") else int(config["max_position_embeddings"])

    def scaling(name: str, length: int) -> RopeScaling:
        # Phi-3.5-MoE has an attention factor for each; elsewhere one, from the ratio, serves both.
        attention_factor = section.get(f"{name}_mscale") or section.get("attention_factor")
        made = methods.longrope(
            rotary_dim=shape.rotary_dim,
            base=shape.base,
            original_length=original,
            target_length=target,
            factors=tuple(section[f"{name}_factor"]),
            attention_factor=attention_factor,
        )
        return RopeScaling(made.factors, original, length, attention_factor=made.attention_factor)

    short, long = scaling("short", original), scaling("long", target)
    if target == original or (short.factors, short.attention_factor) == (long.factors, long.attention_factor):
        return ((target, long),)
    return ((original, short), (target, long))
