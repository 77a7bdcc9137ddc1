"""The names that keys of the configuration may hold, from the registries.

The registries are in packages that import the configuration. So they are given by address, as entry points are, and
imported when a name is needed; none of them imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name


def _names_at(address: str) -> Callable[[], tuple[str, ...]]:
    """A function that gives the names in the registry at ``address``, or those that the function there returns."""

    def names() -> tuple[str, ...]:
        registry = resolve_name(address)
        return tuple(registry() if callable(registry) else registry)

    return names


methods = _names_at("ropewalk.rope.methods:compared")
"""Scaling methods that evaluate compares; longrope stands for the searched factors."""
trainable_methods = _names_at("ropewalk.rope.methods:trainable")
samplers = _names_at("ropewalk.search.samplers:SAMPLERS")
sources = _names_at("ropewalk.corpus.registry:SOURCES")
needles = _names_at("ropewalk.evaluate.needle_families:FAMILIES")
benchmarks = _names_at("ropewalk.evaluate.tasks:TASKS")


def required_keys(source: str) -> Mapping[str, str]:
    """Keys of the section that a corpus source needs, each with what its value must be."""
    required: Mapping[str, str] = resolve_name("ropewalk.corpus.registry:SOURCES")[source].required
    return required


def needles_in_texts(families: Sequence[str]) -> list[str]:
    """Those of the needle families that hide their needles in test documents."""
    return list(resolve_name("ropewalk.evaluate.needle_families:in_texts")(families))
