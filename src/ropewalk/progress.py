"""Progress bars: tqdm's on a terminal, and a plain line every ten seconds elsewhere."""

import sys
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# tqdm's default lock is shared between processes, and a worker that is killed would leave its semaphore behind.
tqdm.set_lock(threading.RLock())


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm that prints whole lines where standard error is no terminal, and nothing where there is nothing to do."""

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
            # On closing, tqdm would write control characters for a terminal.
            self.sp = None
        super().close()
