"""The check of a GPU runs without one as far as it can: it finds what is wrong, and says why it skips the rest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import _agrees, cosines, main
from featbench.evaluate.neighbours.search import search


def checks_of(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert file.with_suffix(".md").read_text().startswith("# GPU check: ")
    found: list[dict[str, Any]] = content["checks"]
    return found


def test_searches_are_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--only", "search", "--out", str(tmp_path)]) == 0
    found = checks_of(tmp_path)
    assert {check["state"] for check in found} == {"passed"}
    assert {check["name"] for check in found} == {
        f"search, {precision}, k = {k}" for precision in ("float32", "float16") for k in (20, 200)
    }


def test_a_wrong_list_fails_the_check_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def wrong(*arguments: Any, **settings: Any) -> Any:
        calls.append(settings["k"])
        if len(calls) == 2:
            raise RuntimeError("CUDA error: out of memory")
        found = search(*arguments, **settings)
        rows_QK = found.rows_QK.copy()
        rows_QK[3, 5] += 1 if len(calls) == 1 else 0
        return dataclasses.replace(found, rows_QK=rows_QK)

    monkeypatch.setattr(gpu_check, "search", wrong)
    assert main(["--device", "cpu", "--only", "search", "--out", str(tmp_path)]) == 1
    found = checks_of(tmp_path)
    assert [check["state"] for check in found] == ["failed", "failed", "passed", "passed"]
    assert "ARE NOT" in found[0]["detail"]
    assert "out of memory" in found[1]["detail"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_everything_is_skipped_with_the_reason(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    found = checks_of(tmp_path)
    assert len(found) > 10
    assert {(check["state"], check["detail"]) for check in found} == {("skipped", "torch sees no CUDA device")}


def test_checks_that_would_begin_too_late_are_skipped(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 0
    assert {check["state"] for check in checks_of(tmp_path)} == {"skipped"}


def test_lists_agree_if_only_equal_similarities_are_swapped() -> None:
    database = np.array([[1, 0], [0, 1], [2, 0], [1, 1]], np.float32)
    queries, half = np.array([[1, 0]], np.float32), np.sqrt(0.5)
    assert _agrees(np.array([[0, 2, 3]]), np.array([[1, 1, half]]), database, queries)[0]
    assert _agrees(np.array([[2, 0, 3]]), np.array([[1, 1, half]]), database, queries)[0]
    assert not _agrees(np.array([[0, 3, 2]]), np.array([[1, half, 1]]), database, queries)[0]
    assert not _agrees(np.array([[0, 0, 3]]), np.array([[1, 1, half]]), database, queries)[0]
    assert not _agrees(np.array([[0, 2, 3]]), np.array([[1, 1, half + 1e-9]]), database, queries)[0]


def test_cosines_are_of_pairs_of_rows() -> None:
    assert cosines(np.array([[1, 0], [3, 4]]), np.array([[5, 0], [4, -3]])) == pytest.approx([1, 0])
