"""Turns errors about memory of the host or the accelerator into one message for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featbench.extract.errors import OutOfMemoryError
from featbench.store.errors import first_line


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, torch's, or that of torch's CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def out_of_memory_is(what: str, advice: str) -> Iterator[None]:
    """Turn errors about memory into an OutOfMemoryError that says where, and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {what} ({first_line(error)}). {advice}") from error
