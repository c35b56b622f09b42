"""What k-means may use, and how it is cut so that it fits: blocks of rows, whether all rows are held, the engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import faiss

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.memory import BLOCK_BYTES, MIB, in_words
from featbench.evaluate.neighbours.backends import TORCH_BYTES, EngineChoice, choose_engine
from featbench.evaluate.neighbours.planning import CPU, Resources

_FIXED_BYTES = 80 * MIB
"""Bytes that every run needs, whatever its size."""

_BYTES_PER_THREAD = 24 * MIB
"""Bytes of temporary arrays of each thread."""

_BYTES_PER_ROW = 80
"""Bytes of one row's length, cluster, distances and bounds of distances."""

_BYTES_PER_CENTROID_NUMBER = 8 + 8 + 8 + 8 + 8 + 4 + 2 + 4 + 4
"""Bytes of one number of a centroid: itself, in two other passes, its sum (2 levels), float32, bfloat16, copies."""

SAMPLED_ROWS = 16_384
"""Fewest rows of the sample that initial centroids are sought on, unless there are fewer."""

SAMPLED_ROWS_PER_CLUSTER = 32
"""Fewest of these rows for each cluster."""

_SAMPLED_NUMBERS = 2**28
"""Most numbers of the sample, 1 GiB of float32; goes before the two above."""

_MIN_ROWS_PER_CLUSTER = 4
"""Fewest rows of the sample for each cluster, however many numbers they are."""

_DRAWN_NUMBERS = 2**26
"""Numbers of the rows of several mini-batches, 256 MiB of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """How k-means is cut; changes no result."""

    rows_per_block: int
    hold: bool = False
    """Whether all rows are kept in memory after they were read."""

    num_threads: int = 1
    engine: EngineChoice = CPU


def sample_size(num_rows: int, num_clusters: int, dim: int) -> int:
    """Number of rows on which initial centroids are sought; memory does not change it, since it changes the result.

    Examples
    --------
    >>> sample_size(1_281_167, 1000, 2048), sample_size(1_281_167, 4096, 9216), sample_size(5000, 10, 64)
    (32000, 29127, 5000)
    """
    wanted = max(SAMPLED_ROWS, SAMPLED_ROWS_PER_CLUSTER * num_clusters)
    allowed = max(_MIN_ROWS_PER_CLUSTER * num_clusters, _SAMPLED_NUMBERS // dim)
    return min(num_rows, wanted, allowed)


def rows_drawn_together(num_rows: int, dim: int, batch: int) -> int:
    """Rows of several mini-batches, which are read in one pass; memory does not change it, since it changes the result.

    Examples
    --------
    >>> rows_drawn_together(1_281_167, 2048, 10_000), rows_drawn_together(50_000, 64, 10_000)
    (30000, 50000)
    """
    batch = min(batch, num_rows)
    return min(num_rows, max(batch, _DRAWN_NUMBERS // dim)) // batch * batch


def plan_clusters(
    resources: Resources,
    *,
    num_rows: int,
    rows_per_chunk: int,
    dim: int,
    num_clusters: int,
    mini_batch: int | None = None,
) -> ClusterPlan:
    """Choose the engine, and cut k-means so that it fits into the memory.

    Parameters
    ----------
    resources : Resources
        What it may use.
    num_rows, rows_per_chunk, dim : int
        Of the layer.
    num_clusters : int
        K.
    mini_batch : int, optional
        Rows of a batch.

    Raises
    ------
    EvaluationError
        If it can't fit; the message says how much memory would do.
    """
    engine = choose_engine(
        resources.device, resources.precision, k=2, similarity="euclidean",
        multiplications=num_rows * num_clusters * dim * _EXPECTED_PASSES,
    )  # fmt: skip
    num_threads = faiss.omp_get_max_threads()
    is_torch_new = engine.low == "bfloat16" and "torch" not in sys.modules
    chunk = rows_per_chunk * dim * 4
    centroids = num_clusters * dim * _BYTES_PER_CENTROID_NUMBER
    always = _FIXED_BYTES + num_threads * _BYTES_PER_THREAD + num_rows * _BYTES_PER_ROW + centroids
    always += TORCH_BYTES if is_torch_new else 0
    sample = sample_size(num_rows, num_clusters, dim) * dim * (4 + 4)
    if mini_batch is not None:
        sample = max(sample, (rows_drawn_together(num_rows, dim, mini_batch) + min(num_rows, mini_batch)) * dim * 4)
    least = always + max(2 * chunk, sample + 2 * chunk)
    if resources.bytes < least:
        if is_torch_new and resources.precision != "low":
            without = replace(resources, precision="float32")
            return plan_clusters(
                without, num_rows=num_rows, rows_per_chunk=rows_per_chunk, dim=dim, num_clusters=num_clusters,
                mini_batch=mini_batch,
            )  # fmt: skip
        raise EvaluationError(
            f"k-means does not fit into {in_words(resources.bytes)} of memory: {num_clusters:,} centroids of "
            f"dimension {dim:,}, {num_rows:,} rows and a sample of them need at least {in_words(least)}. Allow that "
            f"with --memory {-(-least // MIB)}MiB, or ask for fewer clusters."
        )
    block = max(chunk, min(BLOCK_BYTES, (resources.bytes - least) // 3 + chunk))
    held = num_rows * dim * 4
    hold = resources.bytes - always - sample - 2 * block >= held
    return ClusterPlan(
        rows_per_block=max(1, block // chunk) * rows_per_chunk, hold=hold, num_threads=num_threads, engine=engine
    )


_EXPECTED_PASSES = 20
"""Passes over the rows in one run, for choosing a precision."""
