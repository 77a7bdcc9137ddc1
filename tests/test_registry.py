"""Registries: entries by name, no two of one name, and built-in ones that are consistent."""

from dataclasses import replace

import pytest

from ropewalk.evaluate.needle_families import FAMILIES
from ropewalk.evaluate.tasks import TASKS
from ropewalk.registry import Registry
from ropewalk.rope.methods import METHODS, Method


def test_an_entry_is_added_by_a_call_and_no_two_have_one_name() -> None:
    registry = Registry([METHODS["pi"]], group="ropewalk.none")
    mine = replace(METHODS["pi"], name="mine", compared=False)
    assert registry.register(mine) is registry.register(mine) is registry["mine"]
    assert list(registry) == ["pi", "mine"]
    assert registry.names(lambda method: method.compared) == ("pi",)
    with pytest.raises(ValueError, match="the name mine is registered already"):
        registry.register(replace(mine))


def test_built_in_entries_are_consistent() -> None:
    assert all(name == entry.name for registry in (METHODS, FAMILIES, TASKS) for name, entry in registry.items())
    assert [family.number for family in FAMILIES.values()] == [0, 1, 2, 3, 4, 5, 6, 7], "prompts are drawn from them"
    assert isinstance(METHODS["yarn"], Method)
