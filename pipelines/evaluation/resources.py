"""What stage two may use, from its settings and the rank."""

from __future__ import annotations

from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.memory import free_memory, parse_memory
from featbench.evaluate.neighbours.planning import Resources
from featbench.pipelines.ranks import Rank, alone


def resources_of(config: EvaluateConfig, rank: Rank | None = None) -> Resources:
    """Return the resources of a rank: ranks of one host share its memory, and use one GPU each."""
    rank = rank or alone()
    return Resources(
        memory=parse_memory(config.memory) if config.memory else free_memory() // 2 // rank.local_world_size,
        device=f"{config.device}:{rank.local_rank}",
        precision=config.precision,
        num_shards=rank.world_size,
    )
