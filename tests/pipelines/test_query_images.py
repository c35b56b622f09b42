"""Queries that are images: extracted as the bank was, kept inside it, gone on with, and refused where that can't be."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_0

from featbench.__main__ import main
from featbench.pipelines.config.pipeline import load_pipeline
from featbench.pipelines.extraction.queries import with_graphs
from featbench.pipelines.extraction.run import extract
from featbench.store import ChunkWriter, FeatureSet
from featbench.store import verify as faults_of
from tests.conftest import Bench, Records, make_features, save_image
from tests.forking import CONTEXT
from tests.reliability.ranks import chunks_of, keys_journalled


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of two classes, weights, and a feature set that was extracted by them."""
    folder = tmp_path_factory.mktemp("made")
    for seed, (split, name) in enumerate(
        (s, c) for s in ("train", "val", "other") for c in ("cat", "dog") for _ in "ab"
    ):
        save_image(folder / "photos" / split / name / f"{seed}.png", seed=seed)
    torch.manual_seed(0)
    torch.save(squeezenet1_0().state_dict(), folder / "w.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings: dict[str, Any] = {
            "name": "mine", "data.root": "photos", "model.trunk": "squeezenet1_0", "weights": {"file": "w.pth"},
            "layers": ["features.5", "features.12"], "transform": {"resize": 32, "crop": 32},
            "extract.workers": 0, "extract.batch_size": 2,
        }  # fmt: skip
        extract(load_pipeline("folder", settings), quiet=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy what was made into the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_queries(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["layer"]: each for each in found if each["task"] == "queries"}


def top1(found: list[dict[str, Any]]) -> list[float]:
    return [each["top1"] for each in of_queries(found).values()]


def test_images_are_extracted_as_the_bank_was_and_kept(
    folder: Path, records: Records, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images as val get the same bits and the same accuracy."""
    (folder / "same").symlink_to(folder / "photos" / "val")
    first = records("--features", "mine", "--k", 1, "--queries", "copy=same", "--layers", "features.5")
    assert of_queries(first)["features.5"]["top1"] == first[0]["top1"]
    second = records("--features", "mine", "--k", 1, "--queries", "copy=same")  # adds the other layer
    bank, kept = FeatureSet.open(Path("features/mine")), FeatureSet.open(Path("features/mine/queries/copy"))
    for name in ("features.5", "features.12"):
        ours, theirs = (each.layer("val", name).read() for each in (bank, kept))
        assert np.array_equal(ours, theirs)
    assert not list(faults_of(bank.path))
    monkeypatch.setattr("featbench.pipelines.extraction.queries.check", None)  # the model is not built again
    assert top1(records("--features", "mine", "--k", 1, "--queries", "copy=same")) == top1(second)
    shutil.rmtree(folder / "photos")
    assert top1(records("--features", "mine", "--k", 1, "--queries", "copy")) == top1(second)
    assert "4 rows, kept for `bench evaluate --queries copy`" in bench("info", "mine").stdout


def test_an_interrupted_extraction_goes_on(folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "far").symlink_to(folder / "photos" / "other")  # a folder called as the queries
    command = ("evaluate", "--features", "mine", "--k", "1", "--ood", "far=far", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("featbench.pipelines.extraction.rank.extract_chunks", _interrupt)
        assert bench(*command).returncode == 130
    kept = FeatureSet.open(Path("features/mine/queries/far"))
    assert len(kept.pending(["features.5", "features.12"]).missing_layers) == 2
    (folder / "far").rename(folder / "moved")
    gone = bench(*command)
    assert gone.returncode == 2
    assert "some rows or layers are not extracted yet. Say where the images are" in gone.stderr
    (folder / "moved").rename(folder / "far")
    result = bench(*command, "--json")
    assert result.returncode == 0, result.stderr
    assert {each["num_ood"] for each in json.loads(result.stdout) if each["task"] == "ood"} == {4}
    assert not kept.is_committed("val", "features.5").all() or not list(faults_of(kept.path))


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_two_ranks_extract_together_and_write_what_one_does(folder: Path, records: Records, bench: Bench) -> None:
    one = records("--features", "mine", "--k", 1, "--queries", "one=photos/other")
    ranks = [CONTEXT.Process(target=_as_rank, args=(folder, number)) for number in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert top1(json.loads((folder / "out-0").read_text())) == top1(one)
    assert (folder / "out-1").read_text() == "", "one rank speaks for all"
    alone, together = (Path("features/mine/queries") / name for name in ("one", "two"))
    assert chunks_of(together) == chunks_of(alone)
    assert len(keys_journalled(together)) == len(keys_journalled(alone)), "a chunk was computed twice"
    assert len([file for file in (together / "journals").glob("*.jsonl") if file.read_bytes()]) == 2
    assert not list(faults_of(together))


def _as_rank(folder: Path, number: int) -> None:
    """Evaluate as a rank of torchrun, which writes its first chunk when the other has one to write, too."""
    os.chdir(folder)
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(launched | {"RANK": str(number), "LOCAL_RANK": str(number)})
    write, deadline = ChunkWriter.write, time.monotonic() + 100

    def together(*arguments: Any) -> Any:
        Path(f"ready-{number}").touch()
        while not Path(f"ready-{1 - number}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return write(*arguments)

    pytest.MonkeyPatch().setattr(ChunkWriter, "write", together)
    sys.argv = ["bench", "evaluate", "--features", "mine", "--k", "1", "--queries", "two=photos/other", "--json", "-q"]
    with Path(f"out-{number}").open("w") as file:
        os.dup2(file.fileno(), 1)
        main()


def test_a_list_and_the_subset_of_its_classes(folder: Path, records: Records) -> None:
    lines = [f"{path} cat" for path in sorted((folder / "photos" / "other" / "cat").iterdir())]
    (folder / "cats.txt").write_text("\n".join(lines))
    found = records("--features", "mine", "--k", 1, "--queries", "cats=cats.txt", "--bank", "subset")
    for record in of_queries(found).values():
        assert (record["bank"], record["num_train"], record["num_val"], record["top1"]) == ("subset", 2, 2, 1)


def test_an_archive_and_an_image_that_can_not_be_read(folder: Path, bench: Bench, records: Records) -> None:
    shutil.make_archive("far", "tar", "photos/other")
    found = of_queries(records("--features", "mine", "--k", 1, "--layers", "features.5", "--queries", "far=far.tar"))
    assert found["features.5"]["num_val"] == 4
    (folder / "photos" / "other" / "cat" / "bad.png").write_bytes(b"no image")
    command = ("--features", "mine", "--k", "1", "--layers", "features.5", "--queries", "bad=photos/other")
    result = bench("evaluate", *command)
    assert result.returncode == 2
    assert "bad.png" in result.stderr
    assert "--on-error skip" in result.stderr
    assert of_queries(records(*command, "--on-error", "skip"))["features.5"]["num_val"] == 4


def test_layers_of_one_graph_are_extracted_together(folder: Path) -> None:
    manifest = FeatureSet.open(Path("features/mine")).manifest
    record = {"graph": ["features.5", "features.12"]}
    compiled = replace(manifest, notes={"computed": dict.fromkeys(manifest.layers, record)})
    assert with_graphs(compiled, ["features.12"]) == ["features.12", "features.5"]
    assert with_graphs(manifest, ["features.12"]) == ["features.12"]


def test_what_can_not_be_extracted_is_refused(folder: Path, bench: Bench) -> None:
    def refused(*words: str, features: str = "mine") -> str:
        result = bench("evaluate", "--features", features, "--k", "1", *words)
        assert result.returncode == 2, result.stderr
        return " ".join(result.stderr.split())

    assert "'../x': queries that are extracted are kept under their name" in refused("--queries", "../x=photos/other")
    assert "call different things 'a'" in refused("--queries", "a=photos/other", "--ood", "a=photos/val")
    assert "no folder, archive or list of images" in refused("--queries", "a=photos/nowhere")
    made_by_hand = {split: np.eye(4, 6, dtype=np.float32) for split in ("train", "val")}
    make_features(
        Path("features/made"), {s: {"features.5": x} for s, x in made_by_hand.items()},
        {split: np.arange(4) for split in made_by_hand},
    )  # fmt: skip
    assert "was not made by `bench extract`" in refused("--queries", "a=photos/other", features="made")
    assert bench("evaluate", "--features", "mine", "--k", "1", "--queries", "a=photos/other").returncode == 0
    save_image(folder / "photos" / "other" / "cat" / "more.png", seed=99)
    assert "other images or labels, 4 rows; 5 are listed now" in refused("--queries", "a=photos/other")
    torch.manual_seed(1)
    torch.save(squeezenet1_0().state_dict(), "w.pth")
    assert "not what it was made with: weights.sha256" in refused("--queries", "b=photos/other")
    Path("w.pth").unlink()
    assert "w.pth: no such file, from which features/mine was extracted" in refused("--queries", "b=photos/other")
    assert [path.name for path in Path("features/mine/queries").iterdir()] == ["a"]


def test_code_that_a_feature_set_names_runs_only_with_trust(folder: Path, bench: Bench) -> None:
    Path("net.py").write_text(
        "import pathlib\nfrom torchvision.models import squeezenet1_0\npathlib.Path('ran').touch()\n"
        "def net():\n    return squeezenet1_0()\n"
    )
    words = (
        "name=own", "data.root=photos", "model.trunk=net.py:net", "weights.random_seed=0", "layers=[features.5]",
        "transform.resize=32", "transform.crop=32", "extract.workers=0",
    )  # fmt: skip
    result = bench("extract", "folder", *words, "--quiet")
    assert result.returncode == 0, result.stderr
    Path("ran").unlink()
    command = ("evaluate", "--features", "own", "--k", "1", "--queries", "a=photos/other", "--quiet")
    result = bench(*command)
    assert result.returncode == 2
    assert "--trust-code" in result.stderr
    assert not Path("ran").exists()
    result = bench(*command, "--trust-code")
    assert result.returncode == 0, result.stderr
