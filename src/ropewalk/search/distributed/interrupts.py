"""Ctrl-C, held back while it would leave a lock, a thread or half of a trial behind."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sqlalchemy import Engine, event


class Interrupts:
    """Handles SIGINT in the main thread of this process.

    A Ctrl-C is raised at once unless the main thread is using the storage, where it would leave a cursor and a lock
    behind; then it is raised as soon as the storage is released. None is lost, although Python drops exceptions that
    are raised in the callback of a weak reference.
    """

    def __init__(self) -> None:
        self.caught = False
        self._kept = self._held = False
        self._connections_in_use: set[int] = set()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Handle SIGINT while the body runs; a Ctrl-C that was held back is raised at its end at the latest."""
        previous = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        if self._kept or not callable(previous) or not is_main:
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.caught = True
            if not self._held and not self._connections_in_use:
                previous(number, frame)

        self.caught, self._kept = False, True
        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
            caught, self.caught, self._kept = self.caught, False, False
        if caught:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold every Ctrl-C back until the end of the body."""
        with self._holding(True):
            yield

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within `held`, let a Ctrl-C through again; raises one that was held back."""
        with self._holding(False):
            self.check()
            yield

    def check(self) -> None:
        """Raise a Ctrl-C that was held back or dropped."""
        if self.caught:
            raise KeyboardInterrupt

    @contextmanager
    def _holding(self, held: bool) -> Iterator[None]:
        previous, self._held = self._held, held
        try:
            yield
        finally:
            self._held = previous

    def watch(self, engine: Engine) -> None:
        """Hold every Ctrl-C back while the main thread uses a connection of ``engine``."""

        def begin(connection: Any, record: Any, proxy: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                self._connections_in_use.add(id(record))

        def end(connection: Any, record: Any) -> None:
            self._connections_in_use.discard(id(record))

        event.listen(engine, "checkout", begin)
        event.listen(engine, "checkin", end)
        event.listen(engine, "detach", end)


INTERRUPTS = Interrupts()
"""There is one for the process, as signal handlers belong to the process too."""
