"""What is lost when features are stored with fewer digits than they were computed with.

Features are stored in float32 or float16. Values far from zero with small differences (time stamps, projected
coordinates) may be rounded to equal values, and then the order of neighbours depends on row numbers alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featbench.store.typing import Array

REPORTED_ERROR = 1e-2
"""Rounding error, relative to the standard deviation, from which it is reported; for features near zero it is 3e-4 in
float16 and 4e-8 in float32."""

BYTES_PER_BLOCK = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What one layer of one split loses by rounding."""

    num_overflows: int
    """Rows with a finite value that is beyond the stored type's largest."""

    first_overflow: int | None

    num_collapsed: int
    """Distinct rows that become equal to another row."""

    relative_error: float
    """Root mean square of the rounding error over that of the distance from the mean, both in float64."""

    def describe(self) -> str:
        """Say what is lost; "" if it is negligible."""
        lost = []
        if self.num_collapsed:
            lost.append(f"rows that become equal to another one: {self.num_collapsed:,}")
        if self.relative_error >= REPORTED_ERROR:
            lost.append(f"the rounding error is {100 * self.relative_error:.3g}% of the standard deviation")
        return "; ".join(lost)


def rounding_of(values: Array, dtype: str) -> Rounding | None:
    """Measure what features lose when they are stored.

    Parameters
    ----------
    values : ndarray of shape (N, ...)
        Floats, finite or not; may be memory-mapped, read block by block.
    dtype : {"float32", "float16"}
        Stored type.

    Returns
    -------
    Rounding or None
        None if the stored type can represent every value of the given type.
    """
    if np.can_cast(values.dtype, dtype):
        return None
    num_overflows, first_overflow = 0, None
    given, stored_rows = set[bytes](), set[bytes]()
    error = spread = 0.0
    mean = _mean(values)
    for start, rows in blocks_of(values):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            stored = rows.astype(dtype)
            overflows = np.flatnonzero((np.isfinite(rows) & ~np.isfinite(stored)).any(axis=1))
            if len(overflows) and first_overflow is None:
                first_overflow = start + int(overflows[0])
            num_overflows += len(overflows)
            finite = np.isfinite(stored).all(axis=1)
            error += float(np.square(rows[finite] - stored[finite].astype(rows.dtype)).sum())
            spread += float(np.square(rows[finite] - mean).sum())
        given |= _digests(rows)
        stored_rows |= _digests(stored)
    return Rounding(
        num_overflows=num_overflows,
        first_overflow=first_overflow,
        num_collapsed=len(given) - len(stored_rows),
        relative_error=float(np.sqrt(error / spread)) if spread > 0 else 0.0,
    )


def _mean(values: Array) -> Array:
    """Mean of the finite rows, summed relative to the first one, to be precise far from zero."""
    total: Any = 0.0
    count = 0
    first: Any = None
    with np.errstate(over="ignore", invalid="ignore"):
        for _, rows in blocks_of(values):
            kept = rows[np.isfinite(rows).all(axis=1)]
            if len(kept):
                first = kept[0] if first is None else first
                total = total + (kept - first).sum(axis=0)
                count += len(kept)
        return np.asarray(0.0 if first is None else first + total / count)


def blocks_of(values: Array) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the rows of each block, flattened, at least in float64."""
    per_block = max(1, BYTES_PER_BLOCK // max(1, 8 * int(np.prod(values.shape[1:]))))
    kind = np.promote_types(values.dtype, np.float64)
    for start in range(0, len(values), per_block):
        rows = np.asarray(values[start : start + per_block])
        yield start, rows.reshape(len(rows), -1).astype(kind)


def _digests(rows: Array) -> set[bytes]:
    """Digests of rows; 0.0 and -0.0 count as equal."""
    plain = np.ascontiguousarray(rows + rows.dtype.type(0))
    return {hashlib.blake2b(row.data, digest_size=16).digest() for row in plain}
