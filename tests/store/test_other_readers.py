"""Other programs read a feature set: Zarr clients, xarray, and whoever globs for results."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from featbench.store import FeatureSet
from tests.conftest import Arrays, make_features


@pytest.fixture
def made(tmp_path: Path, arrays: Arrays) -> FeatureSet:
    return make_features(tmp_path / "made", *arrays)


def test_every_array_names_its_dimensions_and_no_name_has_two_lengths(made: FeatureSet) -> None:
    group = zarr.open_group(made.path, mode="r")
    for split in ("train", "val"):
        lengths = {}
        for name, array in group[split].arrays():
            names = array.metadata.dimension_names
            assert names[0] == "row", name
            for axis, length in zip(names, array.shape, strict=True):
                assert lengths.setdefault(axis, length) == length
        assert set(lengths) == {"row", "res4_channel", "res4_height", "res4_width", "res5_feature"}


def test_xarray_opens_a_split(made: FeatureSet, arrays: Arrays) -> None:
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(made.path, group="train", consolidated=False, chunks=None)
        assert np.array_equal(dataset["res5"].values, arrays[0]["train"]["res5"])
        assert np.array_equal(dataset["res4"].sel(row=slice(3, 9)).values, arrays[0]["train"]["res4"][3:9])
        assert dataset["labels"].values.tolist() == arrays[1]["train"].tolist()
        assert dataset["paths"].values[0] == "train/0.jpg"
    assert dict(dataset.sizes) == {"row": 50, "res4_channel": 4, "res4_height": 2, "res4_width": 2, "res5_feature": 6}


def test_all_json_files_among_the_results_are_results(made: FeatureSet) -> None:
    made.save_result("first", {"records": [1]})
    made.save_result("second", {"records": [2]})
    found = [json.loads(path.read_text())["records"] for path in sorted((made.path / "results").glob("*.json"))]
    assert found == [[1], [2]]


def test_opening_a_mistyped_name_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "mistyped", mode="r")
    assert not list(tmp_path.iterdir())
