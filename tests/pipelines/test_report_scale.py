"""A report of 50,000 queries and 1,000 classes stays small, and is made soon and in little memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featbench.evaluate.features.labels import matched_labels
from featbench.evaluate.features.layers import stored_layer
from featbench.evaluate.neighbours.cache import NeighbourCache, SearchResult
from featbench.evaluate.neighbours.search import Neighbours
from featbench.store import FeatureSet
from tests.conftest import ROOT, make_features, needs_proc

QUERIES, ROWS, CLASSES, LAYERS, KEPT = 50_000, 20_000, 1000, 4, 200

REPORT = """
import sys, time
from featbench.__main__ import main
from tests.peak import peak_kb
try:
    main()
except SystemExit as stop:
    assert not stop.code
print(peak_kb(), time.process_time())
"""


def make(folder: Path) -> None:
    """Features, lists of neighbours that no search has found, and pictures, many of which are the same file."""
    random = np.random.default_rng(0)
    labels = {"train": np.arange(ROWS) % CLASSES, "val": np.arange(QUERIES) % CLASSES}
    names = [f"layer{number}" for number in range(LAYERS)]
    rows = {
        split: {name: random.normal(size=(len(each), 32)).astype(np.float32) for name in names}
        for split, each in labels.items()
    }
    make_features(folder / "features/big", rows, labels, rows_per_chunk=4096)
    features = FeatureSet.open(folder / "features/big")
    matched = matched_labels(features)
    for name in names:
        own = (np.arange(QUERIES)[:, None] + CLASSES * np.arange(5)) % ROWS
        others = random.integers(0, ROWS, (QUERIES, KEPT - 5))
        lists = np.concatenate([own, others], axis=1)
        places = random.random((QUERIES, KEPT)).argsort(axis=1)
        found = Neighbours(
            rows_QK=np.take_along_axis(lists, places, axis=1), queries=matched.val.rows, num_zeros=0, engine="made",
            similarities_QK=-np.sort(-random.random((QUERIES, KEPT)), axis=1), rechecked=lists[0, :0],
        )  # fmt: skip
        cache = NeighbourCache.of(features, stored_layer(features, name), matched.train, matched.val, "cosine")
        cache.save(SearchResult(neighbours=found, reused=False, seconds=1.0))
    _make_pictures(folder, random)


def _make_pictures(folder: Path, random: np.random.Generator) -> None:
    kinds = []
    for number in range(500):
        out = io.BytesIO()
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        small.resize((160, 120), Image.Resampling.BICUBIC).save(out, "JPEG")
        kinds.append(folder / f"{number}.jpg")
        kinds[-1].write_bytes(out.getvalue())
    for split, count in (("train", ROWS), ("val", QUERIES)):
        (folder / "photos" / split).mkdir(parents=True)
        for row in range(count):
            os.link(kinds[row * 7 % 500], folder / f"photos/{split}/{row}.jpg")


@needs_proc
@pytest.mark.slow
def test_a_report_of_fifty_thousand_queries_is_small_and_made_soon(tmp_path: Path) -> None:
    """Seconds are those of the processor, since other programs may run beside it."""
    make(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", REPORT, "report", "big", "--data", "photos"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    peak_kb, seconds = run.stdout.split()[-2:]
    assert int(peak_kb) < 1.5 * 2**20
    assert float(seconds) < 60
    assert (tmp_path / "report.html").stat().st_size < 10e6
