"""Progress bars: tqdm's on a terminal, a plain line every ten seconds elsewhere."""

import sys
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# tqdm's own lock is for bars of several processes; a worker that is ended would leave its semaphore behind.
tqdm.set_lock(threading.RLock())


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm that prints whole lines where standard error is not a terminal, and nothing where nothing is to be done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        terminal = sys.stderr.isatty()
        kwargs.setdefault("mininterval", 0.5 if terminal else 10.0)
        kwargs.setdefault("maxinterval", 10.0 if terminal else 60.0)
        kwargs.setdefault("dynamic_ncols", terminal)
        if kwargs.get("total") == 0 or (args and not args[0]):
            kwargs["disable"] = True
        super().__init__(*args, **kwargs)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if file.isatty():
            return tqdm.status_printer(file)

        last = ""

        def print_line(text: str) -> None:
            nonlocal last
            if text.strip() and text != last:
                print(text, file=file, flush=True)
                last = text

        return print_line

    def close(self) -> None:
        if not sys.stderr.isatty() and not self.disable:
            self.refresh()
            # What tqdm writes on closing clears or ends a line of a terminal.
            self.sp = None
        super().close()
