"""Two-dimensional maps of the queries: by their principal components, and if asked for by t-SNE or UMAP.

Shape suffixes:  P points   D feature dimension
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from featbench.evaluate.clustering.kept import LoadedClustering
from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.features.selection import Selection
from featbench.pipelines.evaluation.umap_maps import FEWEST, load_umap, umap_of
from featbench.pipelines.report.charts import PALETTE, Chart, Column, Row, base, specification
from featbench.pipelines.report.evaluations import Evaluated
from featbench.pipelines.report.pictures import Pictures
from featbench.store import StoreError
from featbench.store.names import visible
from featbench.store.typing import Doubles, Ints

logger = logging.getLogger(__name__)

Method = Literal["pca", "tsne", "umap"]
NAMES: Mapping[str, str] = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}

MOST_POINTS = 1500
COLOURS = (*PALETTE, "#aa3377", "#66b8ad")
MOST_COLOURS = len(COLOURS)
OTHERS = "others"
SEED = 0


def check_methods(methods: Sequence[str]) -> None:
    """Refuse methods that do not exist, or whose package is not installed.

    Raises
    ------
    EvaluationError, UmapError
        The message says what there is, or how to install it.
    """
    unknown = [each for each in methods if each not in get_args(Method)]
    if unknown:
        raise EvaluationError(f"--map must be of {', '.join(get_args(Method))}; got {', '.join(unknown)}")
    if "umap" in methods:
        load_umap(option="--map umap", instead="take tsne")


def chosen_points(rows: Ints) -> Ints:
    """Rows on the map: all, or a fixed random sample of them."""
    if len(rows) <= MOST_POINTS:
        return rows
    return np.sort(np.random.default_rng(SEED).choice(rows, MOST_POINTS, replace=False))


def map_chart(
    method: str,
    evaluated: Sequence[Evaluated],
    query_rows: Ints,
    loaded: Mapping[int, Sequence[LoadedClustering]],
    pictures: Pictures,
) -> Chart | None:
    """Draw a map of each view; the reader chooses what colours mean. None if no view's features can be read."""
    import altair as alt

    points = chosen_points(query_rows)
    rows: list[Row] = []
    for number, each in enumerate(evaluated):
        try:
            rows += _rows(method, each, next(iter(loaded.get(number, ())), None), points, pictures)
        except StoreError as error:  # all else is made of kept lists
            logger.warning("the report is without a map of %s: %s", each.view.name, error)
    if not rows:
        return None
    axis = alt.Axis(labels=False, grid=False)
    scale = alt.Scale(zero=False)
    first, second = ("first component", "second component") if method == "pca" else ("dimension 1", "dimension 2")
    points_drawn = (
        base(alt)
        .mark_circle(size=34, opacity=0.75)
        .encode(
            x=alt.X("x:Q", title=first, axis=axis, scale=scale), y=alt.Y("y:Q", title=second, axis=axis, scale=scale)
        )
    )
    spec = specification(points_drawn, height=460)
    colours = _colours(rows)
    spec["encoding"]["color"] = next(iter(colours.values()))
    spec["encoding"]["tooltip"] = [{"field": name, "type": "nominal"} for name in ("class", "predicted", "cluster")]
    columns = [
        Column(key="row", title="row"), Column(key="x", title=first, digits=4),
        Column(key="y", title=second, digits=4), Column(key="class", title="class"),
        Column(key="predicted", title="predicted"), Column(key="cluster", title="cluster"),
    ]  # fmt: skip
    split, total = evaluated[0].view.source.queries.split, len(query_rows)
    part = f"{len(points):,} of the {total:,} images" if len(points) < total else f"The {total:,} images"
    return Chart(
        key=f"map-{method}", title=f"Map of {split} by {NAMES[method]}",
        description=f"{part} of {split}, each a point; images with similar features are near one another.",
        spec=spec, rows=rows, columns=columns,
        switch="view", switch_title="Layer", options=[*dict.fromkeys(row["view"] for row in rows)], colours=colours,
    )  # fmt: skip


def _rows(
    method: str,
    evaluated: Evaluated,
    clustering: LoadedClustering | None,
    points: Ints,
    pictures: Pictures,
) -> list[Row]:
    source = evaluated.view.source
    queries, split = source.queries, source.queries.split
    features_PD = _features(evaluated, points)
    positions = np.searchsorted(queries.rows, points)
    at_P2 = project(features_PD, method)
    names = [visible(name, keep="") for name in source.labels.class_names]
    clusters = _cluster_of_rows(clustering, split, source.features.split(split).num_rows)
    rows = []
    for position, row, (x, y) in zip(positions.tolist(), points.tolist(), at_P2.tolist(), strict=True):
        label = int(queries.labels[position])
        predicted = int(evaluated.predicted_Q[position]) if evaluated.results else -1
        rows.append(
            {
                "view": evaluated.view.name, "place": pictures.place(source, split, row, is_small=True), "row": row,
                "x": float(f"{x:.5g}"), "y": float(f"{y:.5g}"), "class": names[label] if label >= 0 else "none",
                "predicted": names[predicted] if predicted >= 0 else "none",
                "right": "none" if predicted < 0 else "right" if predicted == label else "wrong",
                "cluster": "none" if clusters is None else str(clusters[row]),
            }
        )  # fmt: skip
    return _with_groups(rows)


def _features(evaluated: Evaluated, rows: Ints) -> Doubles:
    """Features of some queries, of length 1 if the similarity is the cosine."""
    view = evaluated.view
    features_PD = Selection(layer=view.layer.layers[view.source.queries.split], rows=rows).read().astype(np.float64)
    if view.protocol.similarity == "cosine":
        lengths_P = np.linalg.norm(features_PD, axis=1, keepdims=True)
        features_PD /= np.where(lengths_P > 0, lengths_P, 1)
    return features_PD


def project(features_PD: Doubles, method: str) -> Doubles:
    """Project rows to two dimensions, the same way each time, shape (P, 2)."""
    num_points, dim = features_PD.shape
    if min(num_points, dim) < 3:  # nothing to reduce
        padded_P2 = np.zeros((num_points, 2))
        padded_P2[:, : min(2, dim)] = features_PD[:, :2]
        return padded_P2
    if method == "tsne" and num_points > 3:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (num_points - 1) / 3)
        return np.asarray(TSNE(random_state=SEED, perplexity=perplexity, init="pca").fit_transform(features_PD))
    if method == "umap" and num_points >= FEWEST:
        return umap_of(load_umap(option="--map umap", instead="take tsne"), features_PD)
    from sklearn.decomposition import PCA

    return np.asarray(PCA(2, svd_solver="arpack", random_state=SEED).fit_transform(features_PD))


def _cluster_of_rows(clustering: LoadedClustering | None, split: str, num_rows: int) -> Ints | None:
    if clustering is None:
        return None
    clusters = np.full(num_rows, -1, np.int64)
    part = clustering.splits[split]
    clusters[part.rows_N] = part.clusters_N
    return clusters


def _with_groups(rows: list[Row]) -> list[Row]:
    """Add the class and the cluster to colour by: the most frequent, or `others`."""
    for name in ("class", "cluster"):
        values, counts = np.unique([row[name] for row in rows], return_counts=True)
        frequent = set(values[np.argsort(-counts, kind="stable")[:MOST_COLOURS]].tolist())
        for row in rows:
            row[f"{name}_group"] = row[name] if row[name] in frequent else OTHERS
    return rows


def _colours(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Encodings of the colour, by what they are called."""
    found: dict[str, dict[str, Any]] = {}
    for name, field in (("class", "class_group"), ("right or wrong", "right"), ("cluster", "cluster_group")):
        values = list(dict.fromkeys(row[field] for row in rows))
        if set(values) <= {"none"}:
            continue
        if field == "right":
            scale = {"domain": ["right", "wrong"], "range": [PALETTE[0], PALETTE[1]]}
        else:
            domain = sorted((each for each in values if each != OTHERS), key=_in_order)
            domain = domain[:MOST_COLOURS] if field == "class_group" else domain
            scale = {"domain": [*domain, OTHERS], "range": [*COLOURS[: len(domain)], "#9aa3ad"]}
            if OTHERS not in values:
                scale = {"domain": domain, "range": list(COLOURS[: len(domain)])}
        legend = {"title": name, "orient": "top", "columns": 5, "labelLimit": 120, "symbolOpacity": 1}
        if field == "cluster_group":  # numbers of clusters mean nothing, and are others in each layer
            found[name] = {"field": field, "type": "nominal", "scale": {"range": [*COLOURS]}, "legend": None}
            continue
        found[name] = {"field": field, "type": "nominal", "scale": scale, "legend": legend}
    return found or {"none": {"value": PALETTE[0]}}


def _in_order(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)
