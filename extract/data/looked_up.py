"""Images that a list names: each is looked up, so that a missing one is noticed before anything is extracted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featbench.extract.data.listing import Entries, Listing
from featbench.extract.data.listing_cache import stamp_of
from featbench.extract.errors import DataError
from featbench.store.typing import Int8s, Ints

OR_SKIP = "Give the folder that paths are relative to with --data, or leave missing images out with --on-error skip."


def look_up(
    paths: Sequence[str],
    base: Path,
    *,
    where: object,
    labels: Ints | Int8s | None,
    class_names: Sequence[str],
    files: Iterable[Path],
    on_missing: str = "stop",
    cure: str = OR_SKIP,
) -> Listing:
    """List images by their paths, with size and time of each file.

    Parameters
    ----------
    paths : sequence of str
        Relative to `base`.
    base : Path
        Folder that contains the images.
    where : object
        What names them, for messages.
    labels : array of shape (N,) or (N, C), optional
        Class of each image, or whether it has each class; by default none has a label.
    class_names : sequence of str
        Names of the classes.
    files : iterable of Path
        Lists that paths and labels come from; the listing is valid while they are unchanged.
    on_missing : {"stop", "skip"}
        What to do about missing images.
    cure : str
        What the user can do about them.

    Raises
    ------
    DataError
        If all images are missing, or one is and `on_missing` is "stop".
    """
    entries, missing = Entries(), list[str]()
    for path in paths:
        changed, size = stamp_of(os.path.join(base, path))  # noqa: PTH118 (a million times)
        entries.add(path, size=size, changed=changed, label=-1)
        if size < 0:
            missing.append(path)
    if missing and (on_missing == "stop" or len(missing) == len(entries)):
        raise DataError(
            f"{where}: missing images: {len(missing):,} of {len(entries):,}, such as {base / missing[0]}. {cure}"
        )
    watched = [(str(file), *stamp_of(file)) for file in files]
    return entries.listing(
        class_names=class_names, watched=watched, **({} if labels is None else {"labels": labels})
    )  # fmt: skip
