"""The engines there are, and which of them searches: faiss on a GPU, or matrix products on the CPU.

All give the same neighbours, bit for bit; see `featbench.evaluate.neighbours.search`. If low precision leaves many
lists uncertified, float32 searches for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import faiss

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.neighbours.engine import Engine, SearchRequest
from featbench.evaluate.neighbours.faiss_engine import MAX_GPU_K, FlatEngine, gpu_index, list_length
from featbench.evaluate.neighbours.rotated_engine import RotatedEngine
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.neighbours.tiled_engine import TiledEngine

MakeEngine = Callable[[SearchRequest], Engine]
Low = Literal["float16", "bfloat16"]

TORCH_BYTES = 550 * 2**20
"""Memory that importing torch takes."""

_BFLOAT16_MIN_MULTIPLICATIONS = 2 * 10**11
"""Multiplications per thread above which bfloat16 makes up for importing torch: about 3 s of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Where to search, and in what precision first."""

    where: Literal["gpu", "cpu", "faiss-cpu"]
    low: Low | None = None
    """Low precision of the first pass; None if that is float32."""

    gpu: int = 0
    """Index of the GPU."""

    too_long: int | None = None
    """Length of the lists, if they are too long for a GPU and the CPU searches instead."""

    def __str__(self) -> str:
        place = {"gpu": f"faiss on GPU {self.gpu}", "cpu": "the CPU", "faiss-cpu": "faiss on the CPU"}[self.where]
        return f"{place}, {self.low or 'float32'}"

    @property
    def num_blocks(self) -> int:
        """Copies of a block in memory: one being read, one being searched, and the engine's own."""
        return 4 if self.where == "faiss-cpu" else 3

    def engines(self) -> Iterator[MakeEngine]:
        """Yield engines: the first searches, the next one searches again for lists that could not be certified.

        Raises
        ------
        EvaluationError
            If torch is needed, and is not installed.
        """
        if self.where == "cpu":
            if self.low:
                try:
                    from featbench.evaluate.neighbours.bfloat16 import (
                        Bfloat16Products,  # imports torch, which takes seconds
                    )
                except ImportError as error:
                    raise EvaluationError("bfloat16 needs torch; leave --search-precision out") from error
                yield partial(TiledEngine, make_products=Bfloat16Products)
            yield RotatedEngine
        elif self.where == "faiss-cpu":
            yield partial(FlatEngine, make_index=faiss.IndexFlat)
        else:
            if self.low:
                yield partial(FlatEngine, make_index=gpu_index(self.gpu, is_float16=True), is_float16=True)
            yield partial(FlatEngine, make_index=gpu_index(self.gpu, is_float16=False))


def choose_engine(device: str, precision: str, *, k: int, similarity: Similarity, multiplications: int) -> EngineChoice:
    """Choose where to search, and in what precision.

    Parameters
    ----------
    device : str
        `cpu`, `gpu`, `faiss-cpu` (a faiss index on the CPU), or `auto`, which uses a GPU if faiss sees one. `gpu:3`
        and `auto:3` name one of several, modulo their number.
    precision : str
        `float32`; `low`, which is float16 on a GPU and bfloat16 on the CPU; or `auto`, which uses bfloat16 for long
        searches on CPUs with instructions for it.
    k : int
        Neighbours; if a GPU can't return that many, the CPU searches.
    similarity : {"cosine", "inner_product", "euclidean"}
        float16 serves the cosine only: other numbers may overflow it.
    multiplications : int
        Length of the search: queries times rows times dimension.

    Raises
    ------
    EvaluationError
        If a GPU is asked for, and faiss sees none; or low precision of faiss on the CPU.
    """
    kind, _, number = device.partition(":")
    if kind == "faiss-cpu":
        if precision == "low":
            raise EvaluationError("faiss on the CPU searches in float32; leave --search-precision out")
        return EngineChoice(where="faiss-cpu")
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if kind == "gpu" and not num_gpus:
        raise EvaluationError("faiss sees no GPU; search with --search-device cpu, or install faiss-gpu and a driver")
    wants_gpu = kind != "cpu" and num_gpus > 0
    if wants_gpu and list_length(k) <= MAX_GPU_K:
        fits = similarity == "cosine" and list_length(k, is_float16=True) <= MAX_GPU_K
        low: Low | None = "float16" if precision == "low" and fits else None
        return EngineChoice(where="gpu", low=low, gpu=int(number or 0) % num_gpus)
    is_long = multiplications > _BFLOAT16_MIN_MULTIPLICATIONS * faiss.omp_get_max_threads()
    pays = precision == "auto" and is_long and multiplies_bfloat16() and find_spec("torch") is not None
    low = "bfloat16" if precision == "low" or pays else None
    return EngineChoice(where="cpu", low=low, too_long=list_length(k) if wants_gpu else None)


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has bfloat16 instructions (AVX-512 BF16, AMX, or Arm's); False if unknown."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
