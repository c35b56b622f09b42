"""Files of an export: arrays and tables in the formats of other programs, each written completely or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featbench.store import BenchError
from featbench.store.durable import ANOTHER_FILE, cannot_write
from featbench.store.paths import partial_name
from featbench.store.typing import Array

Arrays = Mapping[str, Array]


OF_CLASSES = ("confusion", "confused_pairs")
"""Arrays whose rows are not those of images."""


class ExportError(BenchError):
    """An export that is not possible."""


def write_npy(out: Path, name: str, arrays: Arrays) -> list[Path]:
    """Write each array to a file of its own."""
    return [save(out / f"{_joined(name, key)}.npy", partial(save_array, array)) for key, array in arrays.items()]


def load_parquet() -> tuple[Any, Any]:
    """Import `pyarrow` and `pyarrow.parquet`.

    Raises
    ------
    ExportError
        If they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExportError("Parquet needs pyarrow: install featbench[parquet]") from error
    return pyarrow, parquet


def write_npz(out: Path, name: str, arrays: Arrays) -> list[Path]:
    """Write the arrays to one file."""
    contents = {key or "features": array for key, array in arrays.items()}
    return [save(out / f"{name}.npz", lambda file: np.savez(file, **contents))]  # type: ignore[arg-type]


def write_parquet(out: Path, name: str, arrays: Arrays) -> list[Path]:
    """Write a table with a row for each image; other arrays (the confusion matrix) get separate files."""
    pa, parquet = load_parquet()

    def column(array: Array) -> Any:
        if array.ndim == 1:
            return pa.array(array)
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])

    num_rows = len(next(iter(arrays.values())))
    columns = {key or "features": column(array) for key, array in arrays.items() if key not in OF_CLASSES}
    assert all(len(each) == num_rows for each in columns.values())
    return [save(out / f"{name}.parquet", lambda file: parquet.write_table(pa.table(columns), file))]


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write flat records as a Parquet file with a column for each key; lists are written as JSON.

    Raises
    ------
    ExportError
        If Parquet's library is not installed, the file exists, or can't be written.
    """
    pa, parquet = load_parquet()

    def column(name: str) -> Any:
        values = [record[name] for record in records]
        values = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        kinds = {type(value) for value in values} - {type(None)}
        # A column has one type: whole numbers among others become floating-point, all else text.
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        return pa.array(values)

    columns = {name: column(name) for name in (records[0] if records else ())}
    return save_alone(path, lambda file: parquet.write_table(pa.table(columns), file))


def write_csv(out: Path, name: str, columns: Arrays) -> list[Path]:
    """Write a table with a line for each row; floating-point numbers have all digits."""

    def write(file: Any) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        text.detach()

    return [save(out / f"{name}.csv", write)]


def save_array(array: Array, file: Any) -> None:
    """Write one array in NumPy's format."""
    np.save(file, array, allow_pickle=False)


def save(path: Path, write: Callable[[Any], object]) -> Path:
    """Write a new file, completely or not at all.

    Raises
    ------
    ExportError
        If it exists.
    """
    if path.exists():
        raise ExportError(f"{path} exists; export into another folder, or remove it")
    unfinished = partial_name(path)
    try:
        with unfinished.open("xb") as file:
            write(file)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def save_alone(path: Path, write: Callable[[Any], object]) -> Path:
    """Write a new file that the user has named, as `save` does; its folder is made.

    Raises
    ------
    ExportError
        If it exists, or can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(path, write)
    except OSError as error:
        raise ExportError(cannot_write(path, error, again=ANOTHER_FILE)) from error


def not_written(out: Path, error: OSError) -> str:
    """Message for an export that failed: files that are there are complete, and no export replaces files."""
    return cannot_write(out, error, again=f"export again, into another folder or after removing {out}")


def _joined(name: str, key: str) -> str:
    return f"{name}_{key}" if key else name
