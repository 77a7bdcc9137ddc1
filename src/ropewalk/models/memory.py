"""Running out of memory, told in a line that says which setting to lower."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ropewalk.models.published import empty_model, read_config

_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Parts of the messages of allocators that have no error class of their own."""


@contextmanager
def within_memory(advice: str | Callable[[], str]) -> Iterator[None]:
    """Raise MemoryError with ``advice`` where the body runs out of memory, on an accelerator or on the CPU.

    A MemoryError that gives advice already is left as it is.

    Args:
        advice: the setting to change, or a function that returns it where finding it takes time.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        has_advice = type(error) is MemoryError and bool(str(error))
        if has_advice or not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory; {advice if isinstance(advice, str) else advice()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, by torch, by numpy or by Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _MESSAGES)


def check_fits(path: str, *, dtype: str, trust_remote_code: bool = False, memory: int | None = None) -> None:
    """Check before a model is loaded, by its config alone, that its weights do not need more memory than there is.

    Args:
        dtype: that of the weights when loaded, ``model.dtype``.
        memory: bytes of the device; by default those of the accelerator, or without one of this machine.

    Raises:
        ValueError: the weights alone are larger, or the config cannot be read.
    """
    if memory is None:
        memory = device_memory()
    config = read_config(path, trust_remote_code=trust_remote_code)
    parameters = sum(weight.numel() for weight in empty_model(config, trust_remote_code=trust_remote_code).parameters())
    size, of_half = parameters * getattr(torch, dtype).itemsize, 2 * parameters
    if size <= memory:
        return
    half = f"model.dtype=bfloat16 takes {_gib(of_half)}; " if of_half <= memory < size else ""
    raise ValueError(
        f"model.path {path}: its weights take {_gib(size)} in model.dtype={dtype}, and the device has {_gib(memory)}; "
        f"{half}`python pipelines/plan.py` says what each stage needs and where it fits"
    )


def device_memory() -> int:
    """Bytes of memory of this machine's accelerator, or else of the machine itself."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
