"""The CRC-32C of memory, computed without holding Python's global lock.

`google_crc32c` holds the lock for anything but `bytes`, so that threads which read chunks would wait for one another.
Its library is therefore called directly, where it can be found.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import google_crc32c

from featbench.store.typing import Array


def extended(checksum: int, values: Array) -> int:
    """Continue a checksum with the bytes of a C-contiguous array; begin with 0.

    Examples
    --------
    >>> import numpy as np
    >>> extended(extended(0, np.frombuffer(b"1234", np.uint8)), np.frombuffer(b"56789", np.uint8)) == 0xE3069283
    True
    """
    if not values.flags.c_contiguous:
        raise ValueError("the array must be C-contiguous")
    return _extend(checksum, values)


def _library() -> Callable[[int, int, int], int] | None:
    """Return `crc32c_extend(checksum, address, bytes)` of the library that `google_crc32c` uses, if it has one."""
    try:
        from google_crc32c import _crc32c

        found = ctypes.CDLL(_crc32c.__file__).crc32c_extend  # also finds what that file was linked with
    except (ImportError, OSError, AttributeError):
        return None
    found.restype, found.argtypes = ctypes.c_uint32, (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    return found


def _chosen() -> Callable[[int, Array], int]:
    library = _library()
    if library is None:
        return lambda checksum, values: int(google_crc32c.extend(checksum, values.tobytes()))
    return lambda checksum, values: library(checksum, values.ctypes.data, values.nbytes)


_extend = _chosen()
