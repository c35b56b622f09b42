"""The catalogue: layouts that are shipped, places that the user says, and what is on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from featbench.pipelines.config.catalogue import CatalogueError, list_datasets, read_catalogue
from featbench.pipelines.config.pipeline import load_pipeline, pipeline_names
from tests.conftest import Bench


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder; the working folder is another."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "featbench").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "config" / "featbench"


def test_every_pipeline_but_folder_has_its_data_set_in_the_catalogue() -> None:
    assert set(read_catalogue()) >= set(pipeline_names()) - {"folder"}


def test_a_place_that_the_user_says_is_taken_and_the_command_line_counts_more(home: Path, photographs: Path) -> None:
    (home / "datasets.yaml").write_text(f"in1k: {{root: {photographs}}}\n")
    assert load_pipeline("in1k").data.root == photographs
    assert load_pipeline("in1k", {"data.root": "/elsewhere"}).data.root.name == "elsewhere"
    assert load_pipeline("places205", {"data.name": "in1k"}).data.root == photographs


def test_the_working_folder_counts_more_than_the_home_and_roots_are_relative_to_their_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "there")
    (home / "datasets.yaml").write_text("mine: {root: $PLACE, val_split: validation}\n")
    assert load_pipeline("folder", {"data.name": "mine"}).data.root == home / "there"
    (home.parent.parent / "work" / "datasets.yaml").write_text("mine: {root: here}\n")
    data = load_pipeline("folder", {"data.name": "mine"}).data
    assert (str(data.root), data.val_split) == ("here", "validation")


def test_what_is_found_and_what_is_missing_is_listed(home: Path, photographs: Path) -> None:
    (home / "datasets.yaml").write_text(
        f"mine: {{root: {photographs}, about: photographs}}\n"
        f"half: {{root: {photographs}, val_split: test}}\n"
        f"cifar10: {{root: {photographs}}}\n"
    )
    listed = {each.name: each for each in list_datasets()}
    assert listed["mine"].found
    assert listed["half"].missing == ("test",)
    assert listed["cifar10"].missing == ("cifar-10-batches-py",)
    assert not listed["in1k"].found
    assert not listed["in1k"].missing
    assert listed["digits"].found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {rot: /data}", "mine.rot: no such setting. Did you mean root"),
        ("mine: {source: tar}", "mine.source: .*'folder'.*; got 'tar'"),
        ("[mine]", "expected data sets and their settings"),
        ("mine: [", "not YAML"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(home: Path, text: str, message: str) -> None:
    (home / "datasets.yaml").write_text(text)
    with pytest.raises(CatalogueError, match=rf"(?s)datasets\.yaml.*{message}"):
        read_catalogue()


def test_the_command_lists_the_catalogue(bench: Bench, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "datasets.yaml").write_text(f"mine: {{root: {photographs}, val_split: test}}\n")
    result = bench("datasets")
    assert result.returncode == 0, result.stderr
    assert "missing: test" in result.stdout
    assert "no root" in result.stdout
    assert "datasets.yaml" in result.stderr


def test_what_the_catalogue_says_of_a_layout_is_left_out_with_another_source() -> None:
    pipeline = load_pipeline("cifar10", {"data.root": "/photos", "data.source": "folder"})
    assert (pipeline.data.dataset, pipeline.data.val_split) == (None, "val")


def test_images_given_to_a_data_set_of_files_are_said_to_be_no_such_files(bench: Bench, photographs: Path) -> None:
    said = bench("extract", "cifar10", "--data", photographs, "--random-weights", "0").stderr
    assert "expected the files of torchvision's CIFAR10; it holds train/, val/" in said
    assert "data.source=folder" in said


def test_an_entry_without_a_source_keeps_its_layout_for_a_pipeline_that_says_folder(home: Path) -> None:
    (home / "datasets.yaml").write_text("mine: {root: /photos, val_split: validation}\n")
    data = load_pipeline("folder", {"data.name": "mine", "data.source": "folder"}).data
    assert (str(data.root), data.val_split) == ("/photos", "validation")
