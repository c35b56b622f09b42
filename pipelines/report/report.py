"""`bench report`: gathers what a page needs from feature sets, one layer in memory at a time, and writes it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featbench import __version__
from featbench.evaluate.clustering.kept import LoadedClustering
from featbench.evaluate.config import EvaluateConfig
from featbench.evaluate.errors import EvaluationError
from featbench.pipelines.report import charts as drawn
from featbench.pipelines.report.charts import Chart
from featbench.pipelines.report.classes import class_numbers, confusion, shown_classes, worst_pairs
from featbench.pipelines.report.clusterings import clusterings_of, clusters_content
from featbench.pipelines.report.comparing import common_queries, comparisons_content
from featbench.pipelines.report.evaluations import Evaluated, Source, evaluate_views, find_views, open_sources
from featbench.pipelines.report.maps import check_methods, map_chart
from featbench.pipelines.report.page import render
from featbench.pipelines.report.pictures import DEFAULT_BUDGET, Pictures
from featbench.pipelines.report.provenance import provenance_of
from featbench.pipelines.report.queries import choose_queries, neighbours_content, usual_number
from featbench.pipelines.report.rows import left_out, rows_content
from featbench.pipelines.report.theme import DARK, LIGHT
from featbench.pipelines.report.training import training_charts
from featbench.store.durable import ANOTHER_FILE, write_durably
from featbench.store.names import visible
from featbench.store.typing import Ints

THUMBNAIL = 96
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page that was written."""

    path: Path
    size: int
    """Bytes."""

    charts: Sequence[Chart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is to look at, and how much of it."""

    queries: int | None = None
    """Queries shown with their neighbours, besides the named ones; by default as many as keep the page small."""

    named: Sequence[str] = ()
    """Paths, or patterns of paths, of further queries."""

    thumbnail: int | None = None
    """Pixels of the longer side of a picture, 0 for no pictures; by default `THUMBNAIL`."""

    folder: Path | None = None
    """Where the images are now, if not where they were."""

    maps: Sequence[str] = ("pca",)
    """Kinds of two-dimensional maps: `pca`, `tsne`, `umap`."""

    @property
    def is_chosen(self) -> bool:
        """Whether the size was chosen, so that it is not limited."""
        return self.queries is not None or self.thumbnail is not None


def write_report(
    paths: Sequence[Path],
    config: EvaluateConfig,
    *,
    out: Path,
    layers: Sequence[str] = (),
    look: Look | None = None,
    command: str = "",
) -> Report:
    """Write one HTML file about feature sets, from the neighbours, clusters and results that they keep.

    Parameters
    ----------
    paths : sequence of Path
        Feature sets; several must have the same queries.
    config : EvaluateConfig
        Protocol, k and temperatures; by default those that were used before.
    out : Path
        File to write; one that exists is replaced.
    layers : sequence of str
        By default all whose neighbours are kept.
    look : Look, optional
        Which queries, and how large their pictures are.
    command : str
        What was typed, for the page.

    Raises
    ------
    BenchError
        If a feature set can't be read, or no neighbours are kept of a layer, or the file can't be written.
    """
    if len(set(paths)) < len(paths):
        raise EvaluationError("a feature set is named twice; name each once: all of its layers are compared")
    if out.is_dir():
        raise EvaluationError(f"{out}: a folder; name a file, such as {out / 'report.html'}")
    look = look or Look()
    check_methods(look.maps)
    if look.folder is not None and not look.folder.is_dir():
        raise EvaluationError(f"{look.folder}: no such folder; name the folder of the images with --data")
    with _noted_warnings() as warnings:
        sources = open_sources(paths, config)
        rows = common_queries(sources)
        evaluated = evaluate_views(find_views(sources, config, layers), config, layers)
        data, all_charts = _gather(sources, evaluated, rows, look)
    content = _content(sources, evaluated, data, [*warnings, *data["pictures"]["faults"]], command)
    text = render(content | {"num_views": len(evaluated)}, data, all_charts)
    encoded = text.encode("utf-8", errors="backslashreplace")
    write_durably(out, encoded, again=ANOTHER_FILE)
    return Report(path=out, size=len(encoded), charts=all_charts)


def _gather(
    sources: Sequence[Source], evaluated: Sequence[Evaluated], rows: Ints, look: Look
) -> tuple[dict[str, Any], list[Chart]]:
    """Gather what the page's program shows. Pictures that come first are there even if not all fit."""
    pictures = Pictures(
        sources=sources, side=THUMBNAIL if look.thumbnail is None else look.thumbnail,
        budget=None if look.is_chosen else DEFAULT_BUDGET, folder=look.folder,
    )  # fmt: skip
    loaded = _loaded_clusterings(evaluated)
    data = _data(evaluated) | {
        "neighbours": _neighbours(evaluated, rows, look, pictures),
        "comparisons": comparisons_content(evaluated, pictures) if len(sources) > 1 else [],
        "clusterings": clusters_content(evaluated, loaded, pictures),
        "rows": rows_content(evaluated, pictures),
        "leftOut": [part for source in sources for part in left_out(source)],
    }
    training = training_charts(sources)
    drawn_maps = [map_chart(method, evaluated, rows, loaded, pictures) for method in look.maps]
    maps = [chart for chart in drawn_maps if chart is not None]
    data |= {"hasTraining": bool(training), "hasMap": bool(maps), "pictures": pictures.content()}
    return data, [*_charts(evaluated), *training, *maps]


def _loaded_clusterings(evaluated: Sequence[Evaluated]) -> dict[int, list[LoadedClustering]]:
    """Kept clusterings by the number of the first view of their layer."""
    found: dict[int, list[LoadedClustering]] = {}
    of_source: dict[Path, dict[str, list[LoadedClustering]]] = {}
    for number, each in enumerate(evaluated):
        source, layer = each.view.source, each.view.layer.name
        if source.features.path not in of_source:
            layers = {other.view.layer.name for other in evaluated if other.view.source is source}
            of_source[source.features.path] = clusterings_of(source, layers)
        if clusterings := of_source[source.features.path].pop(layer, []):
            found[number] = clusterings
    return found


def _charts(evaluated: Sequence[Evaluated]) -> list[Chart]:
    scored = [each for each in evaluated if each.results]
    if not scored:
        return []
    found = [drawn.accuracy_by_k(scored), drawn.layer_curve(scored), drawn.accuracy_by_setting(scored)]
    return [chart for chart in found if chart is not None] + [_confusion_chart(each) for each in scored]


def _confusion_chart(evaluated: Evaluated) -> Chart:
    names = [visible(name, keep="") for name in evaluated.view.source.labels.class_names]
    classes, cells = confusion(evaluated)
    return drawn.confusion_matrix(evaluated.view.name, [names[number] for number in classes], cells, names)


def _view(evaluated: Evaluated) -> dict[str, Any]:
    """What the page's program must know of a view: its names, and which votes it can count."""
    view = evaluated.view
    return {
        "name": view.name, "set": view.source.features.name, "layer": view.layer.name, "vote": view.protocol.vote,
        "k": evaluated.k, "ks": sorted({evaluated.k, *(cell.k for cell in evaluated.grid)}),
        "temperature": evaluated.temperature,
        "temperatures": [*dict.fromkeys(cell.temperature for cell in evaluated.grid)], "kept": evaluated.num_kept,
    }  # fmt: skip


def _data(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """What the page's program shows."""
    names = evaluated[0].view.source.labels.class_names
    scored = any(each.results for each in evaluated)
    return {
        "classes": [visible(name, keep="") for name in names],
        "views": [_view(each) for each in evaluated],
        "byClass": [class_numbers(each) for each in evaluated] if scored else [],
        "pairs": [worst_pairs(each) for each in evaluated] if scored else [],
        "firstView": _first_view(evaluated),
        "themes": {"light": LIGHT, "dark": DARK},
        "onDark": dict(zip(drawn.PALETTE, drawn.ON_DARK, strict=True)),
    }  # fmt: skip


def _neighbours(evaluated: Sequence[Evaluated], rows: Ints, look: Look, pictures: Pictures) -> dict[str, Any]:
    number = usual_number(len(evaluated)) if look.queries is None else look.queries
    chosen = choose_queries(evaluated[_first_view(evaluated)], rows, number=number, named=look.named)
    return neighbours_content(evaluated, chosen, pictures, total=len(rows))


def _content(
    sources: Sequence[Source],
    evaluated: Sequence[Evaluated],
    data: Mapping[str, Any],
    warnings: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """What the template shows itself."""
    best = max((result for each in evaluated for result in each.results), key=lambda each: each.top1, default=None)
    first = sources[0]
    return {
        "title": ", ".join(source.features.name for source in sources),
        "sources": sources,
        "has_several": len(sources) > 1,
        "rows": sorted((result for each in evaluated for result in each.results), key=lambda each: -each.top1),
        "best": best,
        "first_view": _first_view(evaluated),
        "evaluated": evaluated,
        "has_labels": any(each.results for each in evaluated),
        "queries": first.queries,
        "num_train": len(first.labels.train.rows),
        "num_classes": len(first.labels.class_names),
        "shows_all_classes": all(
            len(shown_classes(each)) >= len(set(each.view.source.queries.labels.tolist()))
            for each in evaluated
            if each.results
        ),
        "sections": _sections(evaluated, data),
        "has_training": data["hasTraining"],
        "has_map": data["hasMap"],
        "has_comparisons": bool(data["comparisons"]),
        "has_clusterings": bool(data["clusterings"]),
        "left_out": data["leftOut"],
        "protocols": {each.view.protocol_name: each.view.protocol for each in evaluated},
        "provenance": [provenance_of(source, evaluated) for source in sources],
        "warnings": list(dict.fromkeys(warnings)),
        "command": command,
        "version": __version__,
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _first_view(evaluated: Sequence[Evaluated]) -> int:
    """Number of the view that the page shows first: the one of the best row, or else the last layer."""
    tops = [max((result.top1 for result in each.results), default=-1.0) for each in evaluated]
    return len(tops) - 1 if max(tops) < 0 else tops.index(max(tops))


def _sections(evaluated: Sequence[Evaluated], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parts of the page, for its navigation."""
    has_labels = any(each.results for each in evaluated)
    parts = {
        "overview": ("Overview", True), "comparison": ("Comparison", bool(data["comparisons"])),
        "training": ("Training", data["hasTraining"]), "accuracy": ("Accuracy", has_labels),
        "classes": ("Classes", has_labels),
        "neighbours": ("Neighbours", True), "map": ("Map", data["hasMap"]),
        "clusters": ("Clusters", bool(data["clusterings"])),
        "images": ("Images", True), "provenance": ("Provenance", True),
    }  # fmt: skip
    return [(key, name) for key, (name, is_there) in parts.items() if is_there]


@contextmanager
def _noted_warnings() -> Iterator[list[str]]:
    """Yield the texts of the warnings that are logged meanwhile."""
    texts: list[str] = []

    class Handler(logging.Handler):
        """Keeps texts."""

        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("featbench")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
