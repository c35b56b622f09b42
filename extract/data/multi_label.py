"""Lists of images that have any number of classes each: names in text, CSV or JSON, or a column for each class.

Shape suffixes:  N rows   C classes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from featbench.extract.data.filelists import inner_paths
from featbench.extract.data.list_formats import read_classes
from featbench.extract.data.listing import Listing, first_duplicate
from featbench.extract.data.looked_up import look_up
from featbench.extract.data.several_formats import SeveralLabels, read_several
from featbench.extract.errors import DataError


def list_several(
    where: Path,
    *,
    root: Path | None = None,
    classes: Path | None = None,
    label_column: str | None = None,
    on_missing: str = "stop",
) -> Listing:
    """List the images of a file that names any number of classes for each.

    Parameters
    ----------
    where : Path
        `.txt` (a path, then classes), `.csv` or `.tsv` with a head (a column of paths, and one of classes, or one of 1,
        0 or -1 for each class), or `.json` (COCO's, an object with a list of classes for each path, or a list of
        objects). Names of classes are separated by `;` or `|`, or a JSON list.
    root, label_column, on_missing
        As for `featbench.extract.data.filelists.list_files`.
    classes : Path, optional
        Names of all classes, one a line; numbers index them from 0. By default those that occur.

    Raises
    ------
    DataError
        If the list can't be read, a class is unknown, or an image is missing.
    """
    known = read_classes(classes) if classes is not None else None
    found = read_several(where, known, label_column=label_column)
    files = [path for path in (where, classes) if path is not None]
    inner = inner_paths(found.paths, root, where=where)
    base = root if root is not None else where.parent.resolve()
    return listing_of(inner, found, base, where=str(where), files=files, on_missing=on_missing)


def listing_of(
    paths: Sequence[str],
    found: SeveralLabels,
    base: Path,
    *,
    where: str,
    files: Iterable[Path],
    on_missing: str = "stop",
) -> Listing:
    """Look up the files of images, relative to `base`, and list them.

    Raises
    ------
    DataError
        If an image is missing or listed twice.
    """
    listing = look_up(
        paths, base, where=where, labels=found.matrix_NC, class_names=found.class_names, files=files,
        on_missing=on_missing,
    )  # fmt: skip
    if (twice := first_duplicate(listing.paths)) is not None:
        raise DataError(f"{where}: {twice} is listed twice. Write all of its classes in one line.")
    return listing
