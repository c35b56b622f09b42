"""The checksum is CRC-32C, whichever implementation computes it, and other threads run in the meantime."""

from __future__ import annotations

import threading
import time

import google_crc32c
import numpy as np
import pytest

from featbench.store import checksum


def crc32c_reference(data: bytes) -> int:
    """RFC 3720, appendix B.4, bit by bit."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


@pytest.mark.parametrize("has_library", [True, False])
def test_it_is_the_checksum_of_the_standard_in_any_pieces(monkeypatch: pytest.MonkeyPatch, has_library: bool) -> None:
    if not has_library:
        monkeypatch.setattr(checksum, "_library", lambda: None)
        monkeypatch.setattr(checksum, "_extend", checksum._chosen())
    values = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    expected = crc32c_reference(values.tobytes())
    assert checksum.extended(0, values) == expected
    assert checksum.extended(checksum.extended(0, values[:3]), values[3:]) == expected
    assert checksum.extended(0, values[:0]) == crc32c_reference(b"")
    with pytest.raises(ValueError, match="C-contiguous"):
        checksum.extended(0, values[:, :2])


@pytest.mark.skipif(google_crc32c.implementation != "c", reason="google_crc32c has no library here")
def test_other_threads_run_while_it_is_computed() -> None:
    """With the global lock held, the other thread could not note one time within the call."""
    values, times, over = np.zeros(2**28, np.uint8), [], threading.Event()

    def note() -> None:
        while not over.is_set():
            times.append(time.perf_counter())

    thread = threading.Thread(target=note)
    thread.start()
    try:
        start = time.perf_counter()
        checksum.extended(0, values)
        stop = time.perf_counter()
    finally:
        over.set()
        thread.join()
    middle = [at for at in times if start + (stop - start) / 4 < at < stop - (stop - start) / 4]
    assert middle
