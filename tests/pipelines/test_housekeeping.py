"""`bench ls`, `du`, `rm` and `clean`: what a store holds, and what can go."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from featbench.evaluate.neighbours.kept import kept_neighbours
from featbench.store import FeatureSet, claimed, list_cached
from featbench.store.paths import CLUSTERS, NEIGHBOURS
from tests.conftest import ROOT, Bench, Records, make_features, write_pending

LABELS = {"train": np.arange(24) % 3, "val": np.arange(12) % 3}


def arrays(seed: int) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(seed)
    return {s: {"res5": random.normal(size=(len(each), 4)).astype(np.float32)} for s, each in LABELS.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("kept")
    for seed, name in enumerate(("a", "b")):
        make_features(store / name, arrays(seed), LABELS)
    return store


@pytest.fixture
def store(tmp_path: Path, original: Path) -> Path:
    return shutil.copytree(original, tmp_path / "features")


def listed(bench: Bench, command: str, *arguments: object) -> Any:
    result = bench(command, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def digest(folder: Path, *parts: str) -> str:
    """Digest of all that is in some parts of a feature set."""
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_ls_shows_size_completeness_and_the_best_result(store: Path, bench: Bench, records: Records) -> None:
    found = records("--features", "a", "--k", "1,3,5", "--clusters", "3")
    best = max((each for each in found if each["task"] == "knn"), key=lambda each: each["top1"])
    records("--features", "b", "--leave-one-out", "--k", "2")
    (first, second) = listed(bench, "ls")
    assert (first["best"], first["best_layer"], first["best_k"]) == (best["top1"], "res5", best["k"])
    assert second["best"] is None, "leave-one-out is about train"
    assert first["chunks_written"] == first["chunks_total"] > 0
    assert first["bytes"] > 36 * 4 * 4
    shown = bench("ls").stdout
    assert f"{100 * best['top1']:.1f} res5" in shown
    assert "yes" in shown


def test_ls_goes_on_past_damaged_journals(store: Path, bench: Bench) -> None:
    """A folder in place of a journal can't be read."""
    (journal,) = (store / "b/journals").glob("rank-*.jsonl")
    journal.unlink()
    journal.mkdir()
    (first, second) = listed(bench, "ls")
    assert first["chunks_written"] == first["chunks_total"]
    assert second["chunks_written"] in (None, 0)


def test_ls_shows_what_is_unfinished(store: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conftest.write_pending", lambda *a, **o: write_pending(*a, **{**o, "limit": 1}))
    make_features(store / "c", arrays(2), LABELS)
    rows = {each["name"]: each for each in listed(bench, "ls")}
    assert 0 < rows["c"]["chunks_written"] < rows["c"]["chunks_total"]
    percent = 100 * rows["c"]["chunks_written"] // rows["c"]["chunks_total"]
    assert f"{percent}%" in bench("ls").stdout
    assert rows["a"]["chunks_written"] == rows["a"]["chunks_total"]


def test_du_counts_as_du_does(store: Path, bench: Bench, records: Records) -> None:
    records("--features", "a", "--k", "3", "--clusters", "3")
    for each in listed(bench, "du"):
        counted = subprocess.run(
            ["du", "-s", "--block-size=1", each["path"]], capture_output=True, text=True, check=True
        )
        folder = Path(each["path"]).lstat().st_blocks * 512
        groups = sum((Path(each["path"]) / split).lstat().st_blocks * 512 for split in LABELS)
        assert each["total"] == int(counted.stdout.split()[0]) - folder - groups
    parts = {each["part"]: each["bytes"] for each in listed(bench, "du", "a")}
    assert parts["res5"] > 0
    assert parts["neighbours"] > 0
    assert parts["clusters"] > 0
    assert "in all" in bench("du").stdout


def test_rm_removes_feature_sets_alone(store: Path, bench: Bench) -> None:
    refused = bench("rm", "a", "b")
    assert refused.returncode == 2, "there is no terminal to ask on"
    assert "--yes" in refused.stderr
    (store / "photos").mkdir()
    for names, said in ((("a", "nowhere"), "no such feature set"), (("a", "photos"), "not a feature set")):
        result = bench("rm", *names, "--yes")
        assert result.returncode == 2
        assert said in result.stderr
        assert (store / "a").is_dir(), "all are checked before any is removed"
    result = bench("rm", "a", "--yes")
    assert result.returncode == 0
    assert "0 recorded evaluations" in result.stderr
    assert {path.name for path in store.iterdir()} == {"b", "photos"}


def test_rm_does_nothing_if_the_answer_is_no(store: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    asked: list[str] = []
    monkeypatch.setattr("featbench.pipelines.cli.housekeeping.sys.stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", lambda question, **options: asked.append(question))
    assert bench("rm", "a", "b").returncode == 0
    assert asked == ["Remove these 2 for good?"]
    assert (store / "a").is_dir()
    assert (store / "b").is_dir()


def test_rm_is_refused_while_a_run_writes(store: Path, bench: Bench) -> None:
    with FeatureSet.open(store / "a").lock():
        result = bench("rm", "a", "--yes")
    assert result.returncode == 2
    assert "another extraction is writing to it" in result.stderr
    assert FeatureSet.open(store / "a").labels("train").size == 24


def test_rm_works_where_the_disk_is_full(store: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for name in ("write", "pwrite", "mkdir"):
            patch.setattr(os, name, full)
        result = bench("rm", "b", "--yes")
    assert result.returncode == 0, result.stderr
    assert not (store / "b").exists()


def test_rm_of_a_link_removes_what_it_leads_to(store: Path, bench: Bench) -> None:
    shutil.move(store / "a", store.parent / "elsewhere")
    (store / "a").symlink_to(store.parent / "elsewhere")
    result = bench("rm", "a", "--yes")
    assert result.returncode == 0
    assert "a link to" in result.stderr
    assert not (store / "a").is_symlink()
    assert not (store.parent / "elsewhere").exists()


def test_a_damaged_feature_set_can_be_removed(store: Path, bench: Bench) -> None:
    (store / "a/zarr.json").write_bytes(b"{")
    assert {each["name"] for each in listed(bench, "du")} == {"a", "b"}, "its size counts"
    shown = bench("ls")
    assert shown.returncode == 0
    assert "a/zarr.json: cannot be read (it is not JSON)" in shown.stderr
    assert bench("rm", "a", "--yes").returncode == 0
    assert not (store / "a").exists()


def test_names_do_nothing_to_a_terminal(store: Path, bench: Bench) -> None:
    name = "\x1b[2J[red]"
    (store / "a").rename(store / name)
    for command in (("ls",), ("du",), ("du", name), ("info", name), ("clean",), ("rm", name, "--yes")):
        result = bench(*command)
        assert result.returncode == 0
        assert "\x1b" not in result.stdout + result.stderr
    assert not (store / name).exists()


FEATURES = ("train", "val", "journals", "results")


def evaluated(records: Records, *arguments: str) -> list[bool]:
    """Evaluate `a`; whether neighbours were reused."""
    found = records("--features", "a", "--k", "3", *arguments)
    return [each["neighbours_reused"] for each in found if each["task"] == "knn"]


def states(store: Path) -> list[str]:
    return sorted(each.state for each in kept_neighbours(FeatureSet.open(store / "a")))


def test_clean_keeps_what_an_evaluation_uses(store: Path, bench: Bench, records: Records) -> None:
    """Lists of all queries, leave-one-out, derived layers, an index, and other queries; clusterings."""
    kinds = ((), ("--leave-one-out",), ("--concat", "--pca", "2"), ("--index", "IVF2,Flat"), ("--protocol", "vissl"))
    for kind in kinds:
        evaluated(records, *kind, "--clusters", "3")
    records("--features", "a", "--k", "3", "--queries", "other=b")
    assert set(states(store)) == {"current"}
    before = digest(store / "a", "neighbours", "clusters")
    result = bench("clean", "--yes")
    assert (result.returncode, result.stdout.strip()) == (0, "Nothing to remove.")
    assert digest(store / "a", "neighbours", "clusters") == before
    assert all(all(evaluated(records, *kind)) for kind in kinds)


def changed(store: Path, patch: pytest.MonkeyPatch) -> None:
    """Other features under the same name."""
    shutil.move(store / "a/neighbours", store.parent / "n")
    shutil.move(store / "a/clusters", store.parent / "c")
    shutil.rmtree(store / "a")
    make_features(store / "a", arrays(7), LABELS)
    for kept, name in (("n", "neighbours"), ("c", "clusters")):
        shutil.rmtree(store / "a" / name)
        shutil.move(store.parent / kept, store / "a" / name)


def damaged(store: Path, patch: pytest.MonkeyPatch) -> None:
    for path in (store / "a").glob("[nc][el]*/*/zarr.json"):
        path.write_text(path.read_text().replace("res5", "res4"))


def truncated(store: Path, patch: pytest.MonkeyPatch) -> None:
    """One chunk of each; all metadata are as they were."""
    for path in (*(store / "a").glob("neighbours/*/rows/c/0/0"), *(store / "a").glob("clusters/*/centroids/c/0/0")):
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("spoil", [changed, damaged, truncated])
def test_clean_removes_what_no_evaluation_uses(
    spoil: Callable[[Path, pytest.MonkeyPatch], None], store: Path, bench: Bench, records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    evaluated(records, "--clusters", "3")
    spoil(store, monkeypatch)
    before = digest(store / "a", *FEATURES)
    found = listed(bench, "clean", "--dry-run")
    assert sorted(each["kind"] for each in found) == ["clusters", "neighbours"]
    for arguments in (("--dry-run",), ()):  # without a terminal nothing is asked, and nothing removed
        assert bench("clean", *arguments).returncode == 0
        assert states(store)
    result = bench("clean", "--yes")
    assert result.returncode == 0
    assert "Removed 2 of 2" in result.stderr
    features = FeatureSet.open(store / "a")
    assert not list_cached(features, NEIGHBOURS)
    assert not list_cached(features, CLUSTERS)
    assert digest(store / "a", *FEATURES) == before
    assert evaluated(records) == [False]


def test_lists_of_an_earlier_version_go_when_there_are_newer_ones(
    store: Path, bench: Bench, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("featbench.evaluate.neighbours.cache.ALGORITHM", {"cosine": 4})
        patch.setattr("featbench.evaluate.neighbours.cache.OLDER_ALGORITHM", {})
        evaluated(records)
    assert states(store) == ["earlier version"]
    assert bench("clean", "--yes").stdout.strip() == "Nothing to remove."
    with monkeypatch.context() as patch:
        patch.setattr("featbench.evaluate.neighbours.cache.ALGORITHM", {"cosine": 1})
        patch.setattr("featbench.evaluate.neighbours.cache.OLDER_ALGORITHM", {})
        evaluated(records)
    assert states(store) == ["earlier version", "outdated"]
    assert evaluated(records) == [True], "from those of the earlier version"
    assert states(store) == ["current", "outdated", "superseded"]
    assert "Removed 2 of 2" in bench("clean", "a", "--yes").stderr
    assert evaluated(records) == [True]


def test_version_0_1_0_s_lists_stay_while_they_are_of_use(tmp_path: Path, bench: Bench, records: Records) -> None:
    with tarfile.open(ROOT / "tests/data/version_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert bench("clean", "--yes").returncode == 0
    found = records("--features", "imported", "--k", "1,5")
    assert all(each["neighbours_reused"] for each in found if each["task"] == "knn")
    assert bench("clean", "--yes").returncode == 0
    assert {each.state for each in kept_neighbours(FeatureSet.open(tmp_path / "features/imported"))} <= {
        "current", "earlier version",
    }  # fmt: skip


def test_half_written_files_go_when_they_are_old(store: Path, bench: Bench) -> None:
    old, new = (store / f"a/neighbours/.x.{digit * 32}.partial" for digit in "01")
    beside = store / f".gone.{'2' * 32}.partial"
    for path in (old, new, beside):
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    for path in (old / "zarr.json", old, beside / "zarr.json", beside):
        os.utime(path, (time.time() - 7200,) * 2)
    assert {each["what"] for each in listed(bench, "clean", "--dry-run")} == {f"neighbours/{old.name}", beside.name}
    bench("clean", "--yes")
    assert [path.exists() for path in (old, new, beside)] == [False, True, False]


def test_a_feature_set_is_evaluated_by_its_name_or_its_path(store: Path, records: Records, bench: Bench) -> None:
    (named,) = records("--features", "a", "--store", str(store), "--k", "3")
    path = store / "a"
    for words in ((f"{path}/",), (os.path.relpath(path, store.parent), "--store", "elsewhere")):
        (record,) = records("--features", *words, "--k", "3")
        assert [record[each] for each in ("fingerprint", "top1")] == [named[each] for each in ("fingerprint", "top1")]
    refused = bench("evaluate", "--features", f"{path}/res5")
    assert refused.returncode == 2
    assert "no such feature set" in refused.stderr


def test_what_another_process_computes_stays(store: Path, bench: Bench, records: Records) -> None:
    evaluated(records)
    damaged(store, pytest.MonkeyPatch())
    features = FeatureSet.open(store / "a")
    (kept,) = kept_neighbours(features)
    with claimed(features, NEIGHBOURS, kept.key):
        result = bench("clean", "--yes")
    assert "not removed: in use" in result.stderr
    assert "Removed 0 of 1" in result.stderr
    assert states(store) == ["damaged"]


def test_info_lists_kept_neighbours_and_clusters_with_their_sizes(store: Path, bench: Bench, records: Records) -> None:
    evaluated(records, "--clusters", "3")
    content = listed(bench, "info", "a")
    (lists,) = content["neighbours"]
    assert (lists["layer"], lists["similarity"], lists["k"], lists["num_queries"]) == ("res5", "cosine", 3, 12)
    assert (lists["state"], lists["queries"], lists["of_use"]) == ("current", "val", True)
    shown = bench("info", "a").stdout
    assert "kept neighbours" in shown
    assert shown.count("KiB") == 2
    damaged(store, pytest.MonkeyPatch())
    (lists,) = listed(bench, "info", "a")["neighbours"]
    assert lists["state"] == "damaged"
