"""Stage one from a pipeline: in this process, or in ranks that it starts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from featbench.pipelines.config.pipeline import Pipeline
from featbench.pipelines.extraction.job import prepare
from featbench.pipelines.extraction.rank import run_rank
from featbench.pipelines.ranks import alone, from_environment
from featbench.store import (
    BenchError,
    FeatureSet,
    LayerInfo,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionReport:
    """What an extraction did, all ranks together."""

    features: FeatureSet
    layers: dict[str, LayerInfo]
    """Those that were asked for."""

    new: tuple[str, ...]
    """Those of which something was computed; empty if all was there."""

    rows: int
    """Of the splits, that were computed."""

    bytes: int
    unreadable: int
    """Images that were left out, of those."""

    seconds: float
    weights: str
    flatten: str
    """What the layer `flatten` is, in words; "" if it is not among them."""


def extract(pipeline: Pipeline, *, overwrite: bool = False, quiet: bool = False) -> ExtractionReport:
    """Extract what is missing of a pipeline's layers: in this process, or in ranks that it starts.

    Raises
    ------
    BenchError
        If anything is wrong that the user can mend; what was committed before is safe.
    Interrupted
        If a signal ended it before everything was done.
    """
    start = time.perf_counter()
    rank = from_environment()
    if rank is not None and overwrite:
        raise BenchError(
            "--overwrite can't be used in ranks that torchrun or srun start, since each would replace what the others "
            f"write. Remove {pipeline.store / pipeline.name} first, or take another --name"
        )
    prepared = prepare(pipeline, overwrite=overwrite)
    flatten = prepared.flatten  # now, since whoever launches ranks lets go of the trunk
    before = prepared.features
    known, pending = set(before.records), before.pending(list(prepared.layers))
    if rank is None and pipeline.extract.slurm:
        from featbench.pipelines.extraction.slurm import submit

        new = submit(prepared, quiet=quiet)
    elif rank is None and pipeline.extract.num_ranks > 1:
        from featbench.pipelines.extraction.launch import launch

        new = launch(prepared, quiet=quiet)
    else:
        new = run_rank(rank or alone(), prepared, quiet=quiet)
    after = FeatureSet.open(before.path)
    done = [work for work in pending if after.pending_in(work.split, work.chunk, work.layers) is None]
    return ExtractionReport(
        features=after,
        layers=prepared.layers,
        new=new,
        rows=sum(len(after.grid(work.split).rows(work.chunk)) for work in done),
        bytes=sum(record.size for key, record in after.records.items() if key not in known),
        unreadable=sum(int((~after.valid_chunk(work.split, work.chunk)).sum()) for work in done),
        seconds=time.perf_counter() - start,
        weights=prepared.weights,
        flatten=flatten,
    )
