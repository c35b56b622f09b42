"""Memory of stage two does not grow with the database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_features

MIB = 2**20
BLOCK_MIB = 16
DIM = 256
NUM_QUERIES = 500
K = 200

MEASURE = """
import sys
from pathlib import Path
from evaluate.evaluation import evaluate_knn
from store import FeatureSet
evaluate_knn(FeatureSet.open(Path(sys.argv[1])), ["x"], k=[{k}], block_mib={block})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(path):
    code = MEASURE.format(k=K, block=BLOCK_MIB)
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
def test_a_database_ten_times_as_large_takes_no_more_than_queries_two_blocks_and_lists(tmp_path):
    random = np.random.default_rng(0)
    peaks = {}
    for num_rows in (40_000, 400_000):  # 39 and 391 MiB of features
        train = random.standard_normal((num_rows, DIM), dtype=np.float32)
        features = {"train": {"x": train}, "val": {"x": train[:NUM_QUERIES]}}
        labels = {"train": np.arange(num_rows) % 10, "val": np.arange(NUM_QUERIES) % 10}
        make_features(tmp_path / str(num_rows), features, labels, rows_per_chunk=1024)
        peaks[num_rows] = peak_mib(tmp_path / str(num_rows))
    queries = NUM_QUERIES * DIM * 4 / MIB
    lists = NUM_QUERIES * (K + 32) * 16 / MIB
    labels_and_paths = 400_000 * 100 / MIB
    bound = queries + 2 * BLOCK_MIB + lists + 300
    assert peaks[400_000] < bound, f"{peaks} MiB, allowed {bound:.0f}"
    assert peaks[400_000] - peaks[40_000] < labels_and_paths, f"{peaks} MiB"
