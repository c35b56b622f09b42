"""Files of arrays, recognized by content rather than suffix, and opened without running code.

An opened file is a mapping of names to arrays, each read when it is accessed, so that an unreadable one does not
affect the others. A file of one array has it under the name "".
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from featbench.evaluate.memory import free_memory
from featbench.pipelines.foreign.arrays import ImportingError
from featbench.pipelines.foreign.tables import open_table
from featbench.store.names import visible
from featbench.store.typing import Array

KINDS = ".npy, .npz, .pt or .pth of tensors, .csv, .tsv, .parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an array before it is read; None if unknown."""

    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None


class Container(Mapping[str, Array]):
    """A file's arrays by name."""

    def __init__(self, path: Path, loaders: Mapping[str, Callable[[], Array]], facts: Mapping[str, Facts]) -> None:
        self.path = path
        self.facts = dict(facts)
        self._loaders = dict(loaders)

    def __getitem__(self, name: str) -> Array:
        try:
            return self._loaders[name]()
        except KeyError:
            raise
        except MemoryError as error:
            raise ImportingError(f"{self.path}: {name or 'its array'} does not fit into memory") from error
        except ImportingError:
            raise
        except Exception as error:  # numpy, zipfile, torch and pyarrow raise many kinds for damaged files
            raise ImportingError(f"{self.path}: {name or 'its array'} cannot be read ({_brief(error)})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def single(self) -> Array:
        """Return the one array of the file."""
        if len(self) != 1:
            raise ImportingError(f"{self.path}: holds several arrays, not one: {', '.join(islice(self, 8))}")
        return self[next(iter(self))]


def open_container(path: Path) -> Container:
    """Open a file of arrays.

    Raises
    ------
    ImportingError
        If it can't be read, or its kind is not supported; the message says how to convert it.
    """
    start = first_bytes(path)
    for begins, opener in _OPENERS:
        if start.startswith(begins):
            return opener(path)
    for begins, what in _NOT_READ:
        if start.startswith(begins):
            raise ImportingError(f"{path}: {what}")
    if not start:
        raise ImportingError(f"{path}: the file is empty; expected {KINDS}")
    if path.suffix.lower() in (".pt", ".pth", ".pkl", ".pickle", ".npy") or start[:1] == b"\x80":
        return _open_torch(path) if path.suffix.lower() in (".pt", ".pth") else _refuse_pickle(path)
    if path.suffix.lower() in (".csv", ".tsv", ".txt") or _is_table(start):
        return _open_table(path)
    raise ImportingError(f"{path}: not a plain .npy or .npz file, nor another supported kind ({KINDS})")


def first_bytes(path: Path) -> bytes:
    """Read the first bytes of a regular file; refuse folders, pipes and devices, which may never end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return file.read(4096)
    except OSError as error:
        raise ImportingError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL in the path
        raise ImportingError(f"{path}: cannot be the path of a file ({error})") from error
    if not stat.S_ISDIR(mode):
        raise ImportingError(f"{path}: not a regular file; expected {KINDS}")
    is_zarr = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    what = "a Zarr store: save its arrays with numpy.savez" if is_zarr else "a folder"
    raise ImportingError(f"{path}: {what}; expected a file: {KINDS}")


def _open_npy(path: Path) -> Container:
    def load() -> Array:
        try:
            array: Array = np.load(path, allow_pickle=False, mmap_mode="r")
            return array
        except ValueError as error:
            raise ImportingError(f"{path}: {_refusal(error)}") from error

    facts = Facts()
    try:
        with path.open("rb") as file:
            facts = _header(file)
    except (OSError, ValueError):
        pass  # loading will report it
    return Container(path, {"": load}, {"": facts})


def _open_zip(path: Path) -> Container:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info.filename for info in archive.infolist()]
            names = {name.removesuffix(".npy"): name for name in members if name.endswith(".npy")}
            if not names:
                if any(name.endswith("/data.pkl") or name == "data.pkl" for name in members):
                    return _open_torch(path)
                raise ImportingError(f"{path}: a zip archive without arrays, not an .npz; expected {KINDS}")
            facts = {name: _facts(archive, member) for name, member in names.items()}
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ImportingError(f"{path}: not a plain .npy or .npz file ({_brief(error)})") from error

    def load(name: str) -> Array:
        known = facts[name]
        if known.dtype is not None and known.dtype.hasobject:
            raise ImportingError(f"{path}: {name!r} holds Python objects, which are not read; {_OBJECTS}")
        if known.shape is not None and known.dtype is not None:
            size = int(np.prod(known.shape, dtype=object)) * known.dtype.itemsize
            if size > free_memory():
                raise ImportingError(
                    f"{path}: {name!r} would take {size / 2**30:,.1f} GiB of memory, {free_memory() / 2**30:,.1f} GiB "
                    f"are free. Save it as .npy, which is read in blocks."
                )
        with np.load(path, allow_pickle=False) as content:
            value: Array = content[name]
            return value

    return Container(path, {name: (lambda name=name: load(name)) for name in names}, facts)  # type: ignore[misc]


def _facts(archive: zipfile.ZipFile, member: str) -> Facts:
    try:
        with archive.open(member) as file:
            return _header(file)
    except Exception:  # reading will report it
        return Facts()


def _header(file: Any) -> Facts:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return Facts(shape=tuple(shape), dtype=dtype)


def _open_torch(path: Path) -> Container:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        needs = " It needs more than tensors" if "weights_only" in str(error) or "Unsupported" in str(error) else ""
        raise ImportingError(
            f"{path}: cannot be read as tensors ({type(error).__name__}: {_brief(error)}).{needs and needs + '.'} "
            f"Save the features as a tensor, or as an array with numpy.save."
        ) from error
    found: dict[str, Array] = {}
    for name, value in _named(content, path).items():
        array = _as_array(value)
        if array is not None:
            found[name] = array
    if not found:
        raise ImportingError(f"{path}: holds a {type(content).__name__} without dense tensors, not features")
    facts = {name: Facts(shape=array.shape, dtype=array.dtype) for name, array in found.items()}
    return Container(path, {name: (lambda array=array: array) for name, array in found.items()}, facts)  # type: ignore[misc]


def _named(content: Any, path: Path) -> dict[str, Any]:
    """Return the values of a file by name: `outer_inner` in nested mappings, `0`, `1`, ... in a list or tuple."""
    import torch

    if isinstance(content, Mapping):
        named: dict[str, Any] = {}
        for name, value in content.items():
            inner = value if isinstance(value, Mapping) else {}
            named |= {f"{name}_{key}": each for key, each in inner.items()} if inner else {str(name): value}
        return named
    if not isinstance(content, list | tuple) or not all(isinstance(each, torch.Tensor) for each in content):
        return {"": content}
    shapes = {tuple(each.shape) for each in content}
    if len(shapes) == 1 and len(content) > 1 and {len(shape) for shape in shapes} == {1}:
        return {"": torch.stack(list(content))}
    if len(content) > 1 and all(len(shape) > 1 for shape in shapes) and len({shape[1:] for shape in shapes}) == 1:
        raise ImportingError(
            f"{path}: holds {len(content)} tensors with rows of the same shape, such as the features of several "
            f"batches. Save them as one tensor: torch.cat(list)."
        )
    return {str(index): each for index, each in enumerate(content)}


def _as_array(value: object) -> Array | None:
    """Convert a dense tensor with data, or a list of numbers or names; None for anything else."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return None
        value = value.detach().resolve_conj().resolve_neg()
        if value.is_floating_point() and value.dtype not in (torch.float64, torch.float32, torch.float16):
            value = value.float()  # NumPy has neither bfloat16 nor float8
        return np.asarray(value.numpy())
    if isinstance(value, list | tuple) and value and all(isinstance(each, int | float | str) for each in value):
        return np.array(value)
    return None


def _refuse_pickle(path: Path) -> Container:
    raise ImportingError(
        f"{path}: a pickle, or a damaged file. Pickles are not read, since that can run code. If you trust it, load "
        f"it yourself and save the arrays with numpy.savez."
    )


def _open_parquet(path: Path) -> Container:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportingError(f"{path}: Parquet needs pyarrow: install featbench[parquet]") from error
    try:
        file = parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
    except Exception as error:  # pyarrow raises many kinds for damaged files
        raise ImportingError(f"{path}: cannot be read as Parquet ({_brief(error)})") from error

    def load(name: str) -> Array:
        column = file.read(columns=[name]).column(0).combine_chunks()
        column = column.combine_chunks() if hasattr(column, "chunks") else column
        if hasattr(column, "to_numpy_ndarray"):  # a column of tensors of one shape
            return np.asarray(column.to_numpy_ndarray())
        if column.null_count and str(column.type) == "bool":
            column = column.cast("int8")
        if column.null_count and not str(column.type).startswith(("list", "fixed_size_list", "large_list")):
            column = column.fill_null("" if "string" in str(column.type) else -1)
        if str(column.type).startswith(("list", "fixed_size_list", "large_list")):
            values = column.flatten().to_numpy(zero_copy_only=False)
            if not len(column) or column.null_count or len(values) % len(column):
                raise ImportingError(f"{path}: the lists of column {name!r} must all have the same length")
            lengths = set(column.value_lengths().to_pylist()) if hasattr(column, "value_lengths") else set()
            if len(lengths) > 1:
                raise ImportingError(f"{path}: the lists of column {name!r} have {len(lengths)} different lengths")
            return np.asarray(values.reshape(len(column), -1))
        array = np.asarray(column.to_numpy(zero_copy_only=False))
        return array.astype(np.str_) if array.dtype == object else array

    return Container(path, {name: (lambda name=name: load(name)) for name in names}, {name: Facts() for name in names})  # type: ignore[misc]


def _is_table(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError:
        return False
    return "\n" in text and any(mark in text.partition("\n")[0] for mark in ",\t;")


def _open_table(path: Path) -> Container:
    table = open_table(path)
    loaders: dict[str, Callable[[], Array]] = {"features": table.read_features} if table.features else {}
    for kind, index in (("labels", table.labels), ("paths", table.paths)):
        if index is not None:
            loaders[kind] = partial(table.read_text, index)
    return Container(path, loaders, dict.fromkeys(loaders, Facts()))


def _refusal(error: ValueError) -> str:
    """Say why NumPy does not read an .npy file."""
    if any(words in str(error) for words in ("allow_pickle", "Object arrays", "Python objects")):
        return f"holds Python objects, which are not read; {_OBJECTS}"
    return f"not a plain .npy or .npz file ({_brief(error)})"


def _brief(error: Exception) -> str:
    text = visible(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


_OBJECTS = "save numbers or text: np.array(list_of_names, dtype=str) for names, np.stack(list_of_vectors) for features"

_OPENERS: tuple[tuple[bytes, Callable[[Path], Container]], ...] = (
    (b"\x93NUMPY", _open_npy),
    (b"PK\x03\x04", _open_zip),
    (b"PK\x05\x06", _open_zip),
    (b"PAR1", _open_parquet),
)

_NOT_READ = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: open it with h5py and save its arrays with numpy.savez"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (
        b"MATLAB ",
        "a MATLAB file: load it with scipy.io.loadmat (7.3: h5py) and save its arrays with numpy.savez",
    ),
    (b"ARROW1", "an Arrow (Feather) file: save it as Parquet"),
    (b"SQLite format 3", "a database: save its arrays with numpy.savez"),
)
