"""Tables of clusterings: what they are worth, and which are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from featbench.evaluate.cluster_results import ClusterResult
from featbench.evaluate.metrics import Estimate
from featbench.pipelines.cli.cells import LAYER, percent, size_in_words, yes_or_no
from featbench.pipelines.evaluation.kept_names import settings_in_words
from featbench.pipelines.terminal.table import Column, Table
from featbench.store.paths import CLUSTERS, cached_folder
from featbench.store.usage import size_on_disk

if TYPE_CHECKING:
    from pathlib import Path

    from featbench.evaluate.clustering.kept import KeptClustering


def cluster_table(results: Sequence[ClusterResult]) -> Table:
    """Make the table of cluster metrics; columns in which no result has a value are left out."""
    columns = list(_CLUSTER_COLUMNS)
    if len({(result.layer, result.clusters, result.split) for result in results}) < len(results):
        columns.insert(1, (Column(name="clustering", is_right=False), lambda result: result.clustering or ""))
    shown = [column for column in columns if any(column[1](result) for result in results)]
    return Table(
        title=f"{results[0].layer.features}: {_whose_clusters(results[0])}",
        columns=tuple(column for column, _ in shown),
        rows=tuple(tuple(cell(result) for _, cell in shown) for result in results),
        notes=tuple(_cluster_notes(results)),
        num_grouped=2,
    )


def _whose_clusters(result: ClusterResult) -> str:
    return "k-means on train" if result.clusters_of is None else f"clusters of {result.clusters_of}"


def _cluster_notes(results: Sequence[ClusterResult]) -> Iterator[str]:
    first = results[0]
    if any(result.metrics for result in results):
        yield (
            "% with 95% interval; one-to-one: accuracy of the best match of clusters and classes; many-to-one: each "
            "cluster predicts the majority class of its train images."
        )
    labelled = {result.split: (result.num_labelled, len(result.assignments)) for result in results}
    if any(0 < some < every for some, every in labelled.values()):
        counts = ", ".join(f"{some:,} of {every:,} {split}" for split, (some, every) in labelled.items())
        yield f"Images with a label, which these metrics count: {counts}."
    empty = [result for result in results if result.split == "train" and result.sizes.num_empty]
    if empty:
        counts = ", ".join(f"{each.layer.layer} {each.sizes.num_empty:,} of {each.clusters:,}" for each in empty)
        yield f"Clusters without a train image: {counts}."
    if len(first.runs) > 1:
        yield f"Best of {len(first.runs)} runs; objective: with mean and standard deviation of the runs."
    if all(result.certified for result in results):
        yield "Nearest centroids certified exact."


def _metric(name: str) -> Callable[[ClusterResult], str]:
    """Cell of a label metric, in percent."""

    def cell(result: ClusterResult) -> str:
        value: Estimate | float | None = getattr(result.metrics, name, None)
        if isinstance(value, Estimate):
            return percent(value)
        return "" if value is None else f"{100 * value:.1f}"

    return cell


def _objective(result: ClusterResult) -> str:
    if result.split != "train":  # which alone is optimized
        return ""
    spread = f" ({result.objectives.mean:.6g} ±{result.objectives.sd:.2g})" if len(result.runs) > 1 else ""
    return f"{result.objective:.6g}{spread}"


def _silhouette(result: ClusterResult) -> str:
    value = result.silhouettes.sampled
    return "" if value is None else f"{value:.3f}"


def _simplified_silhouette(result: ClusterResult) -> str:
    value = result.silhouettes.simplified
    return "" if value is None else f"{value:.3f}"


def _sizes(result: ClusterResult) -> str:
    sizes = result.sizes
    return f"{sizes.smallest:,}/{sizes.median:,.0f}/{sizes.largest:,}"


_CLUSTER_COLUMNS: tuple[tuple[Column, Callable[[ClusterResult], str]], ...] = (
    (LAYER, lambda result: result.layer.layer),
    (Column(name="clusters"), lambda result: f"{result.clusters:,}"),
    (Column(name="split", is_right=False), lambda result: result.split),
    (Column(name="NMI"), _metric("nmi")),
    (Column(name="AMI"), _metric("ami")),
    (Column(name="ARI"), _metric("ari")),
    (Column(name="one-to-one", drop=1), _metric("hungarian")),
    (Column(name="many-to-one", drop=2), _metric("many_to_one")),
    (Column(name="purity", drop=3), _metric("purity")),
    (Column(name="homogeneity", drop=10), _metric("homogeneity")),
    (Column(name="completeness", drop=9), _metric("completeness")),
    (Column(name="Fowlkes-Mallows", drop=8), _metric("fowlkes_mallows")),
    (Column(name="silhouette", drop=5), _silhouette),
    (Column(name="simplified silhouette", drop=7), _simplified_silhouette),
    (Column(name="objective", drop=4), _objective),
    (Column(name="size (min/median/max)", drop=6), _sizes),
)


def clustering_table(kept: Sequence[KeptClustering], faults: Mapping[str, str], *, path: Path) -> Table:
    """Make the table of the kept clusterings of a feature set at `path`, and say how to use them."""
    rows = [
        (
            each.layer, f"{each.num_clusters:,}", settings_in_words(each), f"{each.objective:.6g}",
            f"{each.iterations:,}", yes_or_no(each.certified), yes_or_no(each.is_current),
            "" if each.seconds is None else f"{each.seconds:,.1f}",
            size_in_words(size_on_disk(cached_folder(path, CLUSTERS, each.key))), each.key,
        )
        for each in kept
    ]  # fmt: skip
    columns = (
        LAYER,
        Column(name="clusters"),
        Column(name="settings", is_right=False),
        Column(name="objective"),
        Column(name="iterations", drop=4),
        Column(name="exact", is_right=False, drop=1),
        Column(name="current", is_right=False),
        Column(name="seconds", drop=5),
        Column(name="size", drop=2),
        Column(name="key", is_right=False, drop=6),
    )
    notes = [f"{key} cannot be used: {fault}." for key, fault in faults.items()]
    if kept:
        notes.insert(0, "Rows are scaled to length 1, and k-means++ starts, unless said otherwise.")
    if any(each.is_current is False for each in kept):
        notes.append("Not current: the layer or its labels have changed since. Cluster them again: bench evaluate.")
    if any(each.is_current is not False for each in kept):
        notes.append(f"To export them: bench export {path} --what clusters")
    if any(each.is_current is not False and not each.clusters_of for each in kept):
        notes.append(f"To assign other features: bench assign NAME --clusters-of {path}")
    return Table(title="kept clusterings", columns=columns, rows=tuple(rows), notes=tuple(notes), num_grouped=1)
