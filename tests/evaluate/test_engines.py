"""Which engine searches, and that the processor's own instructions change no bit."""

from __future__ import annotations

import os
import subprocess
import sys

import faiss
import numpy as np
import pytest

from evaluate.labels import EvaluationError
from evaluate.neighbours import engines
from evaluate.neighbours.search import search
from tests.conftest import ROOT
from tests.evaluate.test_search import awkward, cut, held

LISTS = """
import hashlib
import numpy as np
from evaluate.neighbours.search import search
from tests.evaluate.test_search import SIMILARITIES, awkward, cut, held
digest = hashlib.sha256()
for kind in ("random", "duplicates", "collapsed"):
    for similarity in SIMILARITIES:
        chosen = held(awkward(kind, 700, 97, 1)), held(awkward(kind, 40, 97, 2))
        found = search(*chosen, k=60, similarity=similarity, plan=cut(250))
        digest.update(found.rows_QK.tobytes() + found.similarities_QK.tobytes())
print(digest.hexdigest())
"""


def test_an_older_processor_finds_the_same_lists_to_the_bit():
    """Numpy without AVX2 and AVX-512, BLAS without them too, one thread."""
    groups = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"  # as numpy 2.4 calls them; before, by instruction
    older = {
        "NPY_DISABLE_CPU_FEATURES": f"{groups} AVX2 FMA3 AVX512F AVX512_SKX",
        "OPENBLAS_CORETYPE": "Nehalem",
        "FAISS_OPT_LEVEL": "generic",
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    digests = {
        subprocess.run(
            [sys.executable, "-c", LISTS], env={**environment, **extra}, capture_output=True, text=True, check=True
        ).stdout
        for extra in ({}, older)
    }
    assert len(digests) == 1


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs that are none: what is sent to them is searched on the CPU, and noted."""
    asked = []

    def knn_gpu(resources, queries, block, k, metric, device):
        asked.append(device)
        return faiss.knn(queries, block, k, metric=metric)

    class Resources:
        def setTempMemory(self, size):
            assert size <= 2**30

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    return asked


@pytest.mark.parametrize(
    ("device", "chosen"),
    [("auto", 0), ("gpu", 0), ("gpu:1", 1), ("auto:2", 0), ("auto:3", 1), ("cpu", None), ("cpu:1", None)],
)
def test_a_rank_takes_the_gpu_of_its_number(two_gpus, device, chosen):
    values = awkward("random", 100, 4, 1)
    found = search(held(values), held(values[:5]), k=3, similarity="cosine", plan=cut(60), device=device)
    assert set(two_gpus) == ({chosen} if chosen is not None else set())
    assert (found.rows_QK[:, 0] == np.arange(5)).all()


def test_more_neighbours_than_a_gpu_keeps_are_searched_on_the_cpu_and_said(two_gpus, caplog):
    values = awkward("random", 2500, 4, 1)
    found = search(held(values), held(values[:3]), k=2100, similarity="cosine", plan=cut(9999), device="gpu")
    assert not two_gpus
    assert found.rows_QK.shape == (3, 2100)
    assert f"at most {engines.MAX_GPU_K} neighbours" in caplog.text


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(EvaluationError, match="faiss sees no GPU"):
        engines.engine_for("gpu:0", 5)
