"""k-means over a layer that streams from the store (Lloyd's algorithm), exact and the same to the last bit everywhere.

Initial centroids are sought on a sample, and the best of several starts is taken (`starts`). Then each iteration passes
once over all rows (`lloyd`): every row is assigned to its nearest centroid, as float64 says (`assignment`), and rows
that change their cluster are moved from one sum to another (`sums`). Neither depends on memory, blocks, threads,
engines or ranks.

Shape suffixes:  K clusters   D feature dimension
"""

from __future__ import annotations

from collections.abc import Callable

from featbench.evaluate.clustering.lloyd import Clustering, Iteration, Position, lloyd, restored
from featbench.evaluate.clustering.mini_batch import mini_batch_kmeans
from featbench.evaluate.clustering.planning import ClusterPlan
from featbench.evaluate.clustering.rows import RowSource, are_equal
from featbench.evaluate.clustering.settings import KmeansSettings
from featbench.evaluate.clustering.starts import sampled, starting_centroids, survey
from featbench.evaluate.clustering.teamwork import Alone, Team
from featbench.evaluate.counting import OnRows
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection
from featbench.store.typing import Doubles


def kmeans(
    data: Selection,
    settings: KmeansSettings,
    *,
    plan: ClusterPlan,
    team: Team | None = None,
    on_rows: OnRows = lambda rows: None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Clustering:
    """Cluster rows by k-means.

    Parameters
    ----------
    data : Selection
        Rows to cluster.
    settings : KmeansSettings
        With 1 <= num_clusters <= len(data).
    plan : ClusterPlan
        What may be used; changes no bit of the result.
    team : Team, optional
        Other ranks, and what is kept to go on after an interruption; none by default.
    on_rows : callable
        Called with the number of rows of each tile that is done.
    on_iteration : callable
        Called after each pass.

    Raises
    ------
    EvaluationError
        If there are more clusters than rows, a value is not finite, all rows are equal, or given centroids do not fit.

    References
    ----------
    Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 1982.
    """
    if not 1 <= settings.num_clusters <= len(data):
        raise EvaluationError(f"clusters must be in [1, {len(data)}], the rows to cluster; got {settings.num_clusters}")
    team = team or Alone()
    sources = [RowSource(shard, normalize=settings.normalize, plan=plan) for shard in team.shards(data)]
    saved = team.saved()
    if saved is not None:
        frame, start = restored(*saved)
    else:
        sample = survey(sources, sampled(len(data), settings, dim=data.layer.dim), team)
        refuse_equal_rows(sample.lowest_D, sample.highest_D, data, settings)
        begun = team.once("start", lambda: {"centroids": starting_centroids(sample, settings, data=data, plan=plan)})
        frame, start = sample.frame, Position(centroids_KD=begun["centroids"])
        del sample
    if settings.mini_batch is not None:
        return mini_batch_kmeans(
            sources, frame, start, settings, team=team, saved=saved, on_rows=on_rows, on_iteration=on_iteration
        )
    return lloyd(sources, frame, start, settings, team=team, on_rows=on_rows, on_iteration=on_iteration)


def refuse_equal_rows(lowest_D: Doubles, highest_D: Doubles, data: Selection, settings: KmeansSettings) -> None:
    """Refuse to divide rows that are all equal, given the lowest and highest number of each dimension.

    Raises
    ------
    EvaluationError
        If there is more than one cluster, and no difference between rows.
    """
    if settings.num_clusters > 1 and are_equal(lowest_D, highest_D):
        scaled = " once they are scaled to length 1" if settings.normalize else ""
        raise EvaluationError(
            f"{data.layer.key}: all {len(data):,} rows are equal{scaled}, so they can't be divided into "
            f"{settings.num_clusters:,} clusters. Leave the layer out, or look for what makes its features constant."
        )
