"""Tables as pandas, lightly and spreadsheets write them: only columns of features become features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from featbench.pipelines.foreign.arrays import ImportingError
from featbench.pipelines.foreign.containers import Container, open_container
from featbench.pipelines.foreign.import_files import read_labels

VALUES = np.array([[0.5, -1.25, 3.0], [1.5, 2.25, -0.125], [4.0, 0.0, 8.5], [1.0, 1.0, 1.0]])
LABELS = ["3", "0", "3", "1"]


def written(
    path: Path,
    header: list[str],
    *,
    first: Sequence[Sequence[str]] = (),
    last: Sequence[Sequence[str]] = (),
    mark: str = ",",
) -> Container:
    columns = [*first, *(map(repr, column) for column in VALUES.T.tolist()), *last]
    lines = [mark.join(row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([*([mark.join(header)] if header else []), *lines]) + "\n")
    return open_container(path)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "first"),
    [
        (["label", "a", "b", "c"], [LABELS]),
        (["", "label", "a", "b", "c"], ["0123", LABELS]),  # DataFrame.to_csv with its index
        (["Unnamed: 0", "label", "a", "b", "c"], ["7152", LABELS]),  # the same, read and written once more
        (["id", "label", "a", "b", "c"], ["4213", LABELS]),
        (["label", "0", "1", "2"], [LABELS]),
        (["filenames", "label", "embedding_0", "embedding_1", "embedding_2"], [["a.jpg", "b", "c", "d"], LABELS]),
    ],
)
def test_index_label_and_path_are_no_features(
    tmp_path: Path, header: list[str], first: list[list[str] | str], mark: str
) -> None:
    table = written(tmp_path / "x.csv", header, first=first, mark=mark)
    assert np.array_equal(table["features"], VALUES)
    assert table["labels"].tolist() == [3, 0, 3, 1]


def test_a_column_called_index_that_repeats_numbers_is_a_feature(tmp_path: Path) -> None:
    table = written(tmp_path / "x.csv", ["index", "a", "b", "c"], first=["0110"])
    assert table["features"].shape == (4, 4)


@pytest.mark.parametrize("header", [["0", "1", "2"], []])
def test_a_line_that_counts_the_columns_is_no_row(tmp_path: Path, header: list[str]) -> None:
    assert np.array_equal(written(tmp_path / "x.csv", header)["features"], VALUES)


@pytest.mark.parametrize("names", [["y", "label"], ["label", "target"], ["label", "label"]])
def test_where_two_columns_may_be_the_labels_one_is_not_taken_for_a_feature(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ImportingError, match=f"could be the labels: {names[0]}, {names[1]}"):
        written(tmp_path / "x.csv", [*names, "a", "b", "c"], first=[LABELS, LABELS])


def test_a_first_line_of_names_and_numbers_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(ImportingError, match="neither a header nor a row"):
        written(tmp_path / "x.csv", [], first=[["cat", "dog", "cat", "dog"]])


def test_decimal_commas_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label;a;b\n1;0,5;2,5\n2;1,5;3,5\n")
    with pytest.raises(ImportingError, match="with a decimal point"):
        open_container(path)["features"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1_0", "1_1", "10", "11"], ["1_0", "1_1", "10", "11"]),  # int("1_0") is 10
        (["01", "1", "2", "2"], ["01", "1", "2", "2"]),
        (["\u0661", "1", "2", "2"], ["\u0661", "1", "2", "2"]),  # an Arabic 1
        (["3", "-1", "0", "3"], [3, -1, 0, 3]),
        (["3.0", "0.0", "3.0", "1.0"], [3, 0, 3, 1]),  # pandas, where a label is missing elsewhere
        (["3.000e+00", "0.000e+00", "3.000e+00", "1.000e+00"], [3, 0, 3, 1]),  # numpy.savetxt
        (["1.0", "1", "2", "2"], ["1.0", "1", "2", "2"]),
        (["1e5", "2", "3", "4"], ["1e5", "2", "3", "4"]),
        (["9" * 5000, "2", "3", "4"], ["9" * 5000, "2", "3", "4"]),
    ],
)
def test_labels_in_text_are_numbers_only_where_no_two_become_one(
    tmp_path: Path, cells: list[str], expected: list[int | str]
) -> None:
    table = written(tmp_path / "x.csv", ["label", "a", "b", "c"], first=[cells])
    (tmp_path / "labels.txt").write_text("\n".join(cells))
    assert table["labels"].tolist() == read_labels(tmp_path / "labels.txt").tolist() == expected
