"""Registries: all entries of one kind (scaling methods, samplers, corpus sources, needle families, benchmark tasks).

Another package adds an entry by an entry point of the registry's group, or by calling `Registry.register`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any, Protocol, TypeVar

Function = str | Callable[..., Any]
"""A function, or the address to import it from when it is needed: ``"package.module:name"``."""


def resolved(function: Function) -> Callable[..., Any]:
    """The function itself, imported now if it is given by its address."""
    return resolve_name(function) if isinstance(function, str) else function


class Named(Protocol):
    @property
    def name(self) -> str: ...


EntryT = TypeVar("EntryT", bound=Named)


class Registry(Mapping[str, EntryT]):
    """Entries by name, in the order of their registration.

    Entry points are loaded when the registry is first read, so that a plug-in may import the module it is in.
    """

    def __init__(self, entries: Iterable[EntryT], *, group: str) -> None:
        """``group`` is that of the entry points by which installed packages add entries; each names an entry object."""
        self._entries: dict[str, EntryT] = {}
        self._group: str | None = group
        for entry in entries:
            self.register(entry)

    def register(self, entry: EntryT) -> EntryT:
        """Add ``entry`` and return it; raises ValueError where another entry has its name."""
        if self._entries.setdefault(entry.name, entry) is not entry:
            raise ValueError(f"the name {entry.name} is registered already; give the new entry another name")
        return entry

    def names(self, holds: Callable[[EntryT], bool]) -> tuple[str, ...]:
        """Names of the entries for which ``holds`` is true."""
        return tuple(name for name, entry in self.items() if holds(entry))

    def _loaded(self) -> dict[str, EntryT]:
        group, self._group = self._group, None
        for point in entry_points(group=group) if group else ():
            self.register(point.load())
        return self._entries

    def __getitem__(self, name: str) -> EntryT:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())
