"""Labels of which any is right, such as ReaL's of ImageNet's val images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from featbench.evaluate.features.labels import MatchedLabels
from featbench.evaluate.metrics import proportion
from featbench.evaluate.other_results import AnyOfResult
from featbench.evaluate.results import KnnResult
from featbench.store import BenchError
from featbench.store.documents import DocumentError, parse_json
from featbench.store.names import normal_name

IMAGENET_VAL = re.compile(r"ILSVRC2012_val_(\d{8})")
"""Names of ImageNet's val images, whose numbers from 1 are the positions in ReaL's list."""


class SeveralRightError(BenchError):
    """A file of labels of which any is right that can't be used."""


def read_several(file: Path, paths: Sequence[str], labels: MatchedLabels) -> list[frozenset[int]]:
    """Read the classes that are right for each row of val; none where the row does not count.

    Parameters
    ----------
    file : Path
        JSON: a list with a list for each image of val (in the order of the rows, or of the numbers in the names of
        ImageNet's images), or an object with a list for each path or file name. Classes are names, or positions among
        the classes of train in order of their names.
    paths : sequence of str
        What the feature set calls each row of val.
    labels : MatchedLabels
        Names and numbers of the classes.

    Raises
    ------
    SeveralRightError
        If it is something else, has another length, or names an unknown class.
    """
    try:
        content: Any = parse_json(file.read_bytes(), where=str(file))
    except (OSError, DocumentError) as error:
        raise SeveralRightError(f"{file}: can't be read as JSON ({error})") from error
    lists = _by_row(file, content, paths)
    in_order = sorted(labels.class_names[label] for label in np.unique(labels.train.labels))
    place = {name: index for index, name in enumerate(labels.class_names)}

    def number(value: Any) -> int:
        name = value
        if type(value) is int and 0 <= value < len(in_order):
            name = in_order[value]
        if not isinstance(name, str) or normal_name(name) not in place:
            raise SeveralRightError(
                f"{file}: {value!r} is no class of train: expected a name such as {in_order[0]!r}, or a number below "
                f"{len(in_order):,}"
            )
        return place[normal_name(name)]

    return [frozenset(map(number, each)) for each in lists]


def any_of(result: KnnResult, name: str, several: Sequence[frozenset[int]], labels: MatchedLabels) -> AnyOfResult:
    """Count a prediction as right if it is any of the classes of its row; rows without any do not count.

    Parameters
    ----------
    result : KnnResult
        Of val, with predictions.
    name : str
        Name of these labels.
    several : sequence of frozenset of int
        Result of `read_several`.
    labels : MatchedLabels
        Those of the result.
    """
    assert result.predictions is not None
    wanted = [several[row] for row in labels.val.rows]
    counted = [(best, each) for best, each in zip(result.predictions.tolist(), wanted, strict=True) if each]
    if not counted:
        raise SeveralRightError(f"{name}: no row of val that is classified has a label in the file")
    right = np.array([best in each for best, each in counted], np.bool_)
    return AnyOfResult(
        result=replace(result, predictions=None), labels=name, top1=proportion(right), num_rows=len(right)
    )


def _by_row(file: Path, content: Any, paths: Sequence[str]) -> list[Sequence[Any]]:
    if isinstance(content, Mapping):
        lists = [content.get(path, content.get(PurePosixPath(path).name, [])) for path in paths]
        if not any(lists):
            raise SeveralRightError(f"{file}: names no image of val, such as {paths[0]!r}")
    elif isinstance(content, list):
        if len(content) != len(paths):
            raise SeveralRightError(f"{file}: {len(content):,} lists of classes, but val has {len(paths):,} rows")
        found = [IMAGENET_VAL.search(path) for path in paths]
        numbers = [int(match[1]) - 1 if match else row for row, match in enumerate(found)]
        if sorted(numbers) != list(range(len(paths))):
            raise SeveralRightError(f"{file}: the numbers in the names of val's images are not 1 to {len(paths):,}")
        lists = [content[number] for number in numbers]
    else:
        raise SeveralRightError(f"{file}: expected a list of lists of classes, or an object with a list for each image")
    wrong = next((each for each in lists if not isinstance(each, list)), None)
    if wrong is not None:
        raise SeveralRightError(f"{file}: {wrong!r} is no list of classes")
    return lists
