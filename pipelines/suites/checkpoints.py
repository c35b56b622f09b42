"""Checkpoint files: those that a pattern matches, and what to call each."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from featbench.pipelines.config.pipeline import PipelineError
from featbench.store.documents import brief_text
from featbench.store.names import natural

SUFFIXES = (
    ".pth.tar", ".pth", ".pt", ".ckpt", ".safetensors", ".torch", ".pkl", ".npz", ".bin",
)  # fmt: skip
"""Endings of files that hold weights."""

MOST_CHARACTERS = 80
"""Longest label; a longer one is cut, and ends in a digest."""


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern of files, and not itself the name of one."""
    return glob.has_magic(text) and not Path(text).exists()


def matching(pattern: str) -> list[Path]:
    """Files that a pattern matches, in natural order: epoch2 before epoch10; without shards that another file lists.

    Raises
    ------
    PipelineError
        If there are none.
    """
    from featbench.extract.weights.checkpoints import HUB_FILES

    folder, rest = _split(pattern)
    # A folder that exists is meant as it is written, also if it has brackets in its name.
    found = [Path(path) for path in glob.glob(str(Path(glob.escape(str(folder)), *rest)), recursive=True)]  # noqa: PTH207
    files = [path for path in found if path.is_file() or any((path / name).is_file() for name in HUB_FILES)]
    files = [path for path in files if not _is_shard(path)]
    if not files:
        what = f"only folders ({', '.join(sorted(map(str, found))[:3])})" if found else "no file"
        raise PipelineError(
            f"weights {brief_text(pattern)}: the pattern matches {what}; in quotes, ** goes into folders"
        )
    return sorted(files, key=lambda path: natural(str(path)))


def _is_shard(path: Path) -> bool:
    """Whether a file is a shard of VISSL's, with the file that lists it beside it."""
    parts = re.fullmatch(r"(.+)_shard\d+(\.\w+)", path.name)
    return parts is not None and path.with_name(parts[1] + parts[2]).is_file()


def stem(name: str) -> str:
    """Name of a file without the ending of a checkpoint.

    Examples
    --------
    >>> stem("checkpoint_0199.pth.tar"), stem("epoch=3-step=120.ckpt"), stem("v1.2")
    ('checkpoint_0199', 'epoch=3-step=120', 'v1.2')
    """
    ending = next((each for each in SUFFIXES if name.lower().endswith(each) and len(name) > len(each)), "")
    return name[: len(name) - len(ending)]


def label_of_match(pattern: str, path: Path) -> str:
    """Label of a file that a pattern matches: the parts of its path from the first that the pattern leaves open.

    So a file keeps its label when others appear.

    Examples
    --------
    >>> label_of_match("runs/*/checkpoint.pth", Path("runs/a/checkpoint.pth"))
    'a-checkpoint'
    """
    folder, rest = _split(pattern)
    first = next((at for at, part in enumerate(rest) if glob.has_magic(part)), len(rest) - 1)
    return label("-".join([*path.parts[len(folder.parts) + first : -1], stem(path.name)]))


def _split(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Divide a pattern into the folder that exists, and the parts after it."""
    parts = Path(pattern).parts
    count = 0
    while count < len(parts) - 1 and Path(*parts[: count + 1]).is_dir():
        count += 1
    return Path(*parts[:count]), parts[count:]


def labels_of_files(paths: Sequence[str]) -> list[str]:
    """Labels of files that were listed: their stems, with as many folders as it takes to tell them apart.

    Examples
    --------
    >>> labels_of_files(["a/last.pth", "b/last.pth", "c/best.pth"])
    ['a-last', 'b-last', 'best']
    """
    return [_label_among(path, paths) for path in paths]


def _label_among(path: str, others: Sequence[str]) -> str:
    parts = Path(path).parts
    for depth in range(1, len(parts) + 1):
        shown = _joined(path, depth)
        if all(_joined(other, depth) != shown for other in others if Path(other) != Path(path)):
            return label(shown)
    return label("-".join(parts))  # they differ in their endings alone


def _joined(path: str, depth: int) -> str:
    *folders, name = Path(path).parts[-depth:]
    return "-".join([*folders, stem(name)])


def label(text: str) -> str:
    """Make a part of a feature set's name of any text; what had to be changed ends in a digest.

    Examples
    --------
    >>> label("epoch=3-step=120"), label("vit b/16"), label("caf\\u00e9")
    ('epoch3-step120', 'vit_b_16-669510', 'caf_-850f7d')
    """
    plain = re.sub(r"(?<=[A-Za-z])=(?=\d)", "", text)  # Lightning's epoch=3
    safe = re.sub(r"[^A-Za-z0-9_.\-]", "_", plain)
    if safe == plain and len(safe) <= MOST_CHARACTERS:
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{safe[:MOST_CHARACTERS]}-{digest}"
