"""Running out of memory, told in one line that says what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Raises MemoryError with ``advice`` where torch has none left, on an accelerator or on the CPU."""
    try:
        yield
    except RuntimeError as error:
        # The CPU's allocator has no error class of its own.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"out of memory; {advice}") from None
        raise
