"""Processes that are forked from one that has imported what they need: they start at once."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "featbench.evaluate.clustering.evaluation",
        "featbench.evaluate.neighbours.cached_search",
        "featbench.pipelines.extraction.run",
        "sklearn.datasets",
    ]
)
