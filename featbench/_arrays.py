"""Arrays and labels as people have them - NumPy, tensors, lists, pandas - brought to the form that is searched."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from featbench.pipelines.foreign.arrays import ImportingError, are_row_numbers, plain_labels
from featbench.pipelines.foreign.rounding import rounding_of
from featbench.store import BenchError
from featbench.store.typing import Array, Floats

_FEW = 10
"""Rows whose labels may well be the numbers of the rows."""


class ArrayError(BenchError, ValueError):
    """Features or labels that can't be used."""


def plain_array(value: object, *, what: str) -> Array:
    """Return what NumPy makes of an array, a list or a tensor; tensors are taken off their graph and device.

    Raises
    ------
    ArrayError
        If NumPy can make nothing of it.
    """
    tensor: Any = value
    try:
        if hasattr(tensor, "detach") and hasattr(tensor, "cpu"):
            tensor = tensor.detach().cpu()
            # NumPy has no bfloat16; all of its values are float32's.
            tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
            return np.asarray(tensor.numpy())
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArrayError(f"{what} can't be made an array: {str(error).splitlines()[0]}") from error


def whole_numbers(values: object, *, what: str) -> list[int]:
    """Return one integer or several as a list, each once.

    Raises
    ------
    ArrayError
        If they are something else, or none.
    """
    try:
        numbers = [operator.index(each) for each in np.atleast_1d(np.asarray(values)).tolist()]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        raise ArrayError(f"{what} must be an integer or several; got {values!r}")
    return list(dict.fromkeys(numbers))


def layers_of(features: object, *, split: str) -> dict[str, Floats]:
    """Return features by layer as float32; one array is the layer `features`.

    Raises
    ------
    ArrayError
        If they are not floats of shape (N, ...), or not finite.
    """
    if not isinstance(features, Mapping):
        return {"features": _floats(features, what=f"the features of {split}")}
    if not features:
        raise ArrayError(f"the features of {split} are an empty mapping; expected arrays by layer")
    return {str(name): _floats(each, what=f"layer {name!r} of {split}") for name, each in features.items()}


def labels_of(labels: object, *, split: str) -> Array:
    """Return labels as integers or names, shape (N,); -1 or "" where there is none, as for None and NaN.

    Raises
    ------
    BenchError
        If they are not one label a row.
    """
    plain = plain_array(labels, what=f"the labels of {split}")
    if plain.dtype == object:
        plain = _of_objects(plain, split)
    try:
        plain = plain_labels(plain, where=f"the labels of {split}")
    except ImportingError as error:
        raise ArrayError(str(error)) from None
    if len(plain) > _FEW and are_row_numbers(plain):
        _warn(f"the labels of {split} are the numbers of the rows, so every row is a class of its own")
    return plain


def warn_of_equal_splits(train: Mapping[str, Floats], val: Mapping[str, Floats]) -> None:
    """Warn of queries that are the database."""
    for name, values in train.items():
        if values.shape == val[name].shape and np.array_equal(values, val[name]):
            _warn(
                f"train and val hold the same {name}, so the nearest neighbour of every query is itself; give the "
                f"right val, or leave val out with leave_one_out=True"
            )


def _of_objects(labels: Array, split: str) -> Array:
    """Return a list with None or NaN among names or numbers as text or as numbers."""
    values = labels.ravel().tolist()
    known = [value for value in values if not _is_none(value)]
    if all(isinstance(value, str) for value in known):
        plain: Array = np.array(["" if _is_none(value) else value for value in values], np.str_)
    elif all(isinstance(value, int | float | np.number) for value in known):
        plain = np.array([-1 if _is_none(value) else value for value in values])
    else:
        kinds = ", ".join(sorted({type(value).__name__ for value in known})[:4])
        raise ArrayError(f"the labels of {split} must be all integers or all names; got {kinds}")
    return plain.reshape(labels.shape)


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or type(value).__name__ == "NAType"


def _floats(features: object, *, what: str) -> Floats:
    values = plain_array(features, what=what)
    if values.dtype.kind in "iub":  # float64 holds integers of 53 bits
        values = values.astype(np.float64 if np.abs(values).max(initial=0) < 2**53 else np.longdouble)
    if values.dtype.kind != "f" or values.ndim < 2:
        raise ArrayError(f"{what} must be numbers of shape (N, ...), one row for each image; got {_form(values)}")
    if not values.size:
        raise ArrayError(f"{what} hold nothing: their shape is {values.shape}")
    if values.dtype != np.float32:
        _say_what_is_lost(values, what)
    with np.errstate(over="ignore"):
        floats: Floats = np.ascontiguousarray(values, dtype=np.float32)
    is_finite = np.isfinite(floats).reshape(len(floats), -1).all(axis=1)
    if not is_finite.all():
        bad = np.flatnonzero(~is_finite)
        named = ", ".join(map(str, bad[:3].tolist())) + (", ..." if len(bad) > 3 else "")
        raise ArrayError(
            f"{what} have NaN or infinite values in {len(bad):,} of {len(floats):,} rows: row {named}. Leave these "
            f"rows out of features and labels, or compute them again."
        )
    return floats


def _say_what_is_lost(values: Array, what: str) -> None:
    """Refuse what float32 can't hold, and warn of what it can't tell apart."""
    lost = rounding_of(values, "float32")
    if lost is None:
        return
    if lost.num_overflows:
        raise ArrayError(
            f"{what} have values beyond float32's largest, {np.finfo(np.float32).max:.3g}, in {lost.num_overflows:,} "
            f"rows: first in row {lost.first_overflow}. Scale the features of both splits by the same number."
        )
    if text := lost.describe():
        _warn(
            f"{what} are {values.dtype} and are compared as float32: {text}. Rows that differ in this alone are not "
            f"told apart. Subtract the mean of train from both splits first (no Euclidean distance changes, but "
            f"cosines do)."
        )


def _form(values: Array) -> str:
    return f"{values.dtype} of shape {values.shape}"


def _warn(text: str) -> None:
    """Warn at the line of the caller's code that called this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("featbench."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
