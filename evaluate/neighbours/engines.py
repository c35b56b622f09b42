"""Who proposes neighbours: faiss's brute-force search of one block in float32, on the CPU or on a GPU.

An engine takes queries (Q, D), a block (N, D), the length of the lists and faiss's metric; it returns
scores and places in the block, each of shape (Q, K). Its scores must be sums of products in float32 in
any order; `evaluate.neighbours.certificate` allows for their rounding. On a GPU faiss forbids cuBLAS the formats with
fewer bits (`CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION` and no TF32).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import faiss
import numpy as np
import numpy.typing as npt

from evaluate.labels import EvaluationError

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Engine = Callable[[Floats, Floats, int, int], tuple[Floats, Ints]]

MAX_GPU_K = 2048
"""faiss on a GPU keeps no longer lists."""

GPU_MEMORY = 512 * 2**20
"""Temporary memory of faiss on a GPU; its own default takes 1.5 GiB and more."""


def engine_for(device: str, k: int) -> Engine:
    """Choose where to search.

    Parameters
    ----------
    device : str
        `cpu`, `gpu`, or `auto`, which takes a GPU if faiss sees one. `gpu:3` and `auto:3` name one of several,
        counted again from 0 behind the last.
    k : int
        Length of the lists; beyond `MAX_GPU_K` the CPU searches, and a warning says so.

    Raises
    ------
    EvaluationError
        If a GPU is asked for, and faiss sees none.
    """
    kind, _, number = device.partition(":")
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if kind == "gpu" and not num_gpus:
        raise EvaluationError("faiss sees no GPU; search with --search-device cpu, or install faiss-gpu and a driver")
    if kind == "cpu" or not num_gpus:
        return lambda queries_QD, block_ND, k, metric: faiss.knn(queries_QD, block_ND, k, metric=metric)
    if k > MAX_GPU_K:
        logger.warning("faiss on a GPU keeps at most %d neighbours; %d are wanted, so the CPU searches", MAX_GPU_K, k)
        return engine_for("cpu", k)
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_MEMORY)
    chosen = int(number or 0) % num_gpus
    return lambda queries_QD, block_ND, k, metric: faiss.knn_gpu(
        resources, queries_QD, block_ND, k, metric=metric, device=chosen
    )
