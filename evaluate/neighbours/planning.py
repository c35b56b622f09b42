"""What a search may use, and how it is cut so that it fits: blocks of rows, groups of queries, and the engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import faiss

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.memory import free_memory, plan_blocks
from featbench.evaluate.neighbours.backends import TORCH_BYTES, EngineChoice, choose_engine
from featbench.evaluate.neighbours.shortlist import room_for
from featbench.evaluate.neighbours.similarity import Similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a search may use; changes no result."""

    memory: int | None = None
    """Bytes; half of the free memory by default."""

    device: str = "auto"
    """What searches: auto, cpu, gpu, gpu:1 or faiss-cpu; see `featbench.evaluate.neighbours.backends`."""

    precision: str = "auto"
    """Precision of the first pass: auto, float32 or low."""

    num_shards: int = 1
    """Ranks that search together: each runs the same evaluation on the same store."""

    @property
    def bytes(self) -> int:
        """Memory to plan with."""
        return self.memory or free_memory() // 2


DEFAULT = Resources()
"""Half of the free memory, a GPU if there is one, one rank."""

CPU = EngineChoice(where="cpu")
"""Matrix products in float32 on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How a search is cut, and which engine searches; changes no result."""

    rows_per_block: int
    queries_at_once: int
    """Queries for which the database is read once."""

    engine: EngineChoice = CPU


def plan_search(
    resources: Resources,
    *,
    num_rows: int,
    rows_per_chunk: int,
    dim: int,
    num_queries: int,
    k: int,
    similarity: Similarity,
    memory_shares: int = 1,
) -> SearchPlan:
    """Choose the engine, and cut the search so that it fits into the memory.

    Parameters
    ----------
    resources : Resources
        What it may use.
    num_rows, rows_per_chunk, dim : int
        The database's.
    num_queries, k : int
        Queries, and neighbours of each.
    similarity : {"cosine", "inner_product", "euclidean"}
    memory_shares : int
        Equal shares of the memory, of which the search gets one.

    Raises
    ------
    EvaluationError
        If it can't fit; the message says how much memory would do.
    """
    engine = choose_engine(
        resources.device, resources.precision, k=k, similarity=similarity,
        multiplications=num_rows * num_queries * dim,
    )  # fmt: skip

    def plan_with(engine: EngineChoice, libraries: int = 0) -> SearchPlan:
        rows_per_block, queries_at_once = plan_blocks(
            resources.bytes,
            num_rows=num_rows,
            rows_per_chunk=rows_per_chunk,
            dim=dim,
            num_queries=num_queries,
            k=k,
            room=room_for(k),
            num_blocks=engine.num_blocks,
            num_threads=faiss.omp_get_max_threads(),
            libraries=libraries,
            num_shares=memory_shares,
        )
        return SearchPlan(rows_per_block=rows_per_block, queries_at_once=queries_at_once, engine=engine)

    if engine.low != "bfloat16" or "torch" in sys.modules:
        return plan_with(engine)
    try:
        return plan_with(engine, libraries=TORCH_BYTES)
    except EvaluationError:
        if resources.precision == "low":
            raise
        return plan_with(replace(engine, low=None))
