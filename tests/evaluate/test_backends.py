"""Which engine searches, and that the processor's own instructions change no bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from featbench.evaluate.errors import EvaluationError
from featbench.evaluate.neighbours import backends
from featbench.evaluate.neighbours.backends import EngineChoice, choose_engine, multiplies_bfloat16
from featbench.evaluate.neighbours.engine import SearchRequest
from featbench.evaluate.neighbours.faiss_engine import MAX_GPU_K, FlatEngine
from featbench.evaluate.neighbours.search import search
from featbench.evaluate.neighbours.similarity import Similarity
from featbench.evaluate.neighbours.tiled_engine import Float32Products, TiledEngine
from featbench.store.typing import Floats, Ints
from tests.conftest import ROOT
from tests.evaluate.test_search import assert_equal, awkward, cut, held

LISTS = """
import hashlib
import numpy as np
from featbench.evaluate.neighbours.search import search
from tests.evaluate.test_search import SIMILARITIES, awkward, cut, held
digest = hashlib.sha256()
for kind in ("random", "duplicates", "collapsed"):
    for similarity in SIMILARITIES:
        chosen = held(awkward(kind, 700, 97, 1)), held(awkward(kind, 40, 97, 2))
        found = search(*chosen, k=60, similarity=similarity, plan=cut(250))
        digest.update(found.rows_QK.tobytes() + found.similarities_QK.tobytes())
print(digest.hexdigest())
"""


def test_an_older_processor_finds_the_same_lists_to_the_bit() -> None:
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


@pytest.mark.parametrize(
    ("device", "chosen"),
    [("auto", 0), ("gpu", 0), ("gpu:1", 1), ("auto:2", 0), ("auto:3", 1), ("cpu", None), ("cpu:1", None)],
)
def test_a_rank_takes_the_gpu_of_its_number(two_gpus: list[Any], device: str, chosen: int | None) -> None:
    values = awkward("random", 100, 4, 1)
    found = search(held(values), held(values[:5]), k=3, similarity="cosine", plan=cut(60, device=device))
    assert {config.device for config in two_gpus} == ({chosen} if chosen is not None else set())
    assert (found.rows_QK[:, 0] == np.arange(5)).all()


def test_a_gpu_stores_rows_in_float16_if_requested_and_only_for_the_cosine(two_gpus: list[Any]) -> None:
    values = awkward("random", 3000, 16, 1)
    for similarity, formats in (("cosine", {True}), ("euclidean", {False}), ("inner_product", {False})):
        two_gpus.clear()
        chosen = held(values), held(values[:20])
        low = search(
            *chosen, k=9, similarity=similarity, plan=cut(700, device="gpu", precision="low", similarity=similarity)
        )
        assert {config.useFloat16 for config in two_gpus} == formats
        full = search(*chosen, k=9, similarity=similarity, plan=cut(700, device="cpu", precision="float32"))
        assert_equal(low, full.rows_QK, full.similarities_QK)


def test_queries_that_low_precision_cannot_certify_are_searched_again_in_float32(two_gpus: list[Any]) -> None:
    """800 rows on an arc: within 2^-11 of one another, far enough apart for float32."""
    angles = np.linspace(0, 0.03, 800)
    values = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = search(held(values), held(values), k=9, similarity="cosine", plan=cut(500, device="gpu", precision="low"))
    assert [config.useFloat16 for config in two_gpus] == [True, True, False, False]
    assert len(found.rechecked) > 400
    alone = search(held(values), held(values), k=9, similarity="cosine", plan=cut(device="cpu", precision="float32"))
    assert_equal(found, alone.rows_QK, alone.similarities_QK)


def test_the_next_block_is_loaded_while_one_is_searched() -> None:
    """Each search waits until another block has been loaded; after the last there is none."""
    loaded, num_blocks = threading.Semaphore(0), 4

    class Index(faiss.IndexFlat):
        def add(self, features: Floats) -> None:
            super().add(features)
            loaded.release()

        def search(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
            assert loaded.acquire(timeout=20), "no block was loaded meanwhile"
            return super().search(queries, k)

    values = awkward("random", 400, 4, 1)
    asked = SearchRequest(
        queries_QD=values[:3], lengths_Q=np.linalg.norm(values[:3], axis=1), k=5, similarity="inner_product"
    )
    engine = FlatEngine(asked, Index)
    for at in range(0, 400, 400 // num_blocks):
        rows = np.arange(at, at + 100)
        engine.add(rows, values[rows], longest=10.0)
        loaded.acquire(blocking=False) if at == 0 else None  # the first block is not loaded during a search
    loaded.release()
    found = engine.close()
    assert np.isin(np.argsort(-(values[:3] @ values.T), axis=1)[:, :5], found.rows_QC).all()


def test_more_neighbours_than_a_gpu_can_return_are_searched_on_the_cpu_with_a_warning(
    two_gpus: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    values = awkward("random", 2500, 4, 1)
    found = search(held(values), held(values[:3]), k=2100, similarity="cosine", plan=cut(9999, device="gpu", k=2100))
    assert not two_gpus
    assert found.rows_QK.shape == (3, 2100)
    assert f"at most {MAX_GPU_K} neighbours" in caplog.text


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(EvaluationError, match="faiss sees no GPU"):
        choose_engine("gpu:0", "auto", k=5, similarity="cosine", multiplications=1)


def test_low_precision_is_refused_where_there_is_none() -> None:
    with pytest.raises(EvaluationError, match="faiss on the CPU searches in float32"):
        choose_engine("faiss-cpu", "low", k=5, similarity="cosine", multiplications=1)


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\nflags\t\t: fpu\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_instructions_for_it(tmp_path: Path, cpuinfo: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is has
    assert not multiplies_bfloat16(tmp_path / "none")


@pytest.mark.parametrize(
    ("precision", "is_long", "has", "low"),
    [
        ("auto", True, True, "bfloat16"),
        ("auto", False, True, None),
        ("auto", True, False, None),
        ("low", False, False, "bfloat16"),
        ("float32", True, True, None),
    ],
)
def test_bfloat16_serves_long_searches_only(
    monkeypatch: pytest.MonkeyPatch, precision: str, is_long: bool, has: bool, low: str | None
) -> None:
    monkeypatch.setattr(backends, "multiplies_bfloat16", lambda: has)
    chosen = choose_engine("cpu", precision, k=5, similarity="cosine", multiplications=10**16 if is_long else 10**9)
    assert chosen.low == low
    assert len(list(chosen.engines())) == 1 + (low is not None)


def test_bfloat16_certifies_most_queries_of_realistic_sizes() -> None:
    database, queries = awkward("random", 20_000, 64, 1), awkward("random", 200, 64, 2)
    chosen = held(database + 1, rows_per_chunk=1024), held(queries + 1)
    low, full = (
        search(*chosen, k=50, similarity="cosine", plan=cut(4096, device="cpu", precision=precision))
        for precision in ("low", "float32")
    )
    assert_equal(low, full.rows_QK, full.similarities_QK)
    assert len(low.rechecked) < 20


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_an_engine_with_larger_errors_than_it_says_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, similarity: Similarity
) -> None:
    """As one would be that multiplies in a format of fewer bits without being asked."""

    class Sloppy(Float32Products):
        def fill(self, queries: slice, rows: slice, scores_QR: Floats) -> None:
            super().fill(queries, rows, scores_QR)
            scores_QR *= np.float32(1 - 2**-9)

    values = awkward("random", 3000, 16, 1)
    chosen = held(values), held(values[:20] + 0.1)
    truth = search(*chosen, k=9, similarity=similarity, plan=cut(device="cpu"))
    monkeypatch.setattr(EngineChoice, "engines", lambda choice: [partial(TiledEngine, make_products=Sloppy)])
    found = search(*chosen, k=9, similarity=similarity, plan=cut())
    assert "further off than its arithmetic allows" in caplog.text
    assert_equal(found, truth.rows_QK, truth.similarities_QK)
    assert len(found.rechecked) == 20


def test_torch_keeps_its_threads() -> None:
    import torch

    before = torch.get_num_threads()
    values = awkward("random", 300, 16, 1)
    search(held(values), held(values), k=9, similarity="cosine", plan=cut(100, device="cpu", precision="low"))
    assert torch.get_num_threads() == before
