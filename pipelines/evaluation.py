"""Stage two from a pipeline: kNN and k-means of a feature set, kept beside it with their provenance."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evaluate.config import EvaluateConfig
from evaluate.evaluation import Record, evaluate_kmeans, evaluate_knn, uniform
from pipelines.progress import Progress
from store import FeatureSet, StoreError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Records of one evaluation, and where they were kept."""

    features: FeatureSet
    records: list[Record]
    path: Path | None
    """None if the store could not be written."""


def evaluate(path: Path, config: EvaluateConfig, *, layers: Sequence[str] = (), progress: Progress) -> EvaluationReport:
    """Evaluate layers of a feature set; all that it has, if none is named.

    Raises
    ------
    BenchError
        If the feature set, a layer or a setting does not allow it.
    """
    start = time.perf_counter()
    features = FeatureSet.open(path)
    names = features.find_layers(layers)
    for name in names:
        for split in ("train", "val"):
            features.layer(split, name)  # refuse an incomplete layer before the first search
    with progress.task("search", features.split("train").num_rows * len(names)) as on_rows:
        records = evaluate_knn(
            features,
            names,
            protocol=config.knn.protocol,
            k=config.knn.k,
            temperature=config.knn.temperature,
            block_mib=config.block_mib,
            device=config.device,
            on_rows=lambda layer, rows: on_rows(rows),
        )
    if config.kmeans.clusters:
        settings = config.kmeans
        records += evaluate_kmeans(
            features,
            names,
            clusters=settings.clusters,
            normalize=settings.normalize,
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=settings.seed,
            block_mib=config.block_mib,
        )
    records = uniform(records)
    now = datetime.now(UTC)
    content = {
        "records": records,
        "settings": config.model_dump(mode="json"),
        "made_from": dict(features.manifest.made_from),
        "fingerprint": features.manifest.fingerprint,
        "software": {"python": platform.python_version(), **_versions()},
        "host": platform.node(),
        "created": now.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 3),
    }
    try:
        saved = features.save_result(now.strftime("%Y%m%dT%H%M%S.%fZ"), content)
    except StoreError as error:  # a store that may only be read still gives its numbers
        logger.warning("the results are not kept: %s", error)
        saved = None
    return EvaluationReport(features=features, records=records, path=saved)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("featbench", "faiss-gpu", "faiss-cpu", "numpy", "scikit-learn", "zarr"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
