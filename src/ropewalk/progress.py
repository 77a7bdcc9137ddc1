"""Progress bars: tqdm's on a terminal, a plain line every ten seconds elsewhere."""

import sys
from collections.abc import Callable
from typing import Any, TextIO

from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm that prints whole lines where standard error is not a terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        terminal = sys.stderr.isatty()
        self._next_line, self._printed_end = 0.0, False
        kwargs.setdefault("mininterval", 0.5 if terminal else 10.0)
        kwargs.setdefault("maxinterval", 10.0 if terminal else 60.0)
        kwargs.setdefault("dynamic_ncols", terminal)
        super().__init__(*args, **kwargs)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        if file.isatty():
            return tqdm.status_printer(file)  # type: ignore[no-any-return]

        def print_line(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return print_line

    def refresh(self, *args: Any, **kwargs: Any) -> bool | None:
        # Lightning refreshes after every step; a line each would flood a log.
        done = self.total is not None and self.n >= self.total
        if not sys.stderr.isatty() and (self._printed_end or not done and self._time() < self._next_line):
            return None
        self._next_line, self._printed_end = self._time() + self.mininterval, done
        return super().refresh(*args, **kwargs)

    def close(self) -> None:
        self.leave = self.leave and sys.stderr.isatty()
        super().close()


class TrainingProgress(TQDMProgressBar):
    """Lightning's progress bar as `Progress`."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self._description = description

    def init_train_tqdm(self) -> Any:
        return Progress(desc=self._description, unit="step", smoothing=0.1)

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self._description, refresh=False)
