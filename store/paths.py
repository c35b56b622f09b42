"""The name of every file and folder of a store and of a feature set; nothing else spells one.

`store/FORMAT.md` says what each holds. Keys are paths below a feature set, with `/` between their parts.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path

METADATA = "zarr.json"
"""Metadata of a Zarr group or array."""

TRAIN, VAL = "train", "val"

LABELS, PATHS, VALID, DIGESTS = "labels", "paths", "valid", "digests"
"""Arrays of a split that are not layers; `digests` is optional."""

ROW_ARRAYS = (LABELS, PATHS, VALID, DIGESTS)

JOURNALS = "journals"
LOCK = f"{JOURNALS}/lock"
METADATA_COPY = f"{JOURNALS}/metadata.json"

NEIGHBOURS, CLUSTERS, PREDICTIONS = "neighbours", "clusters", "predictions"
CACHES = (NEIGHBOURS, CLUSTERS, PREDICTIONS)
"""Groups of cached results, one group in them for each."""

RESULTS = "results"
"""A plain folder, so that all `.json` files in it are results."""

QUERIES = "queries"
"""A plain folder of feature sets: other images, extracted by this feature set's model to ask its bank."""

GROUPS = (JOURNALS, *CACHES)
"""Zarr groups besides the root and the splits."""

OLDER_GROUPS = (JOURNALS, NEIGHBOURS, CLUSTERS, RESULTS)
"""Those of version 0.1.0."""

LISTINGS = ".listings"
"""Folder of a store: cached lists of images."""

SLURM = ".slurm"
"""Folder of a store: logs and files of submitted jobs."""

CURVES = ".curves"
"""Folder of a store: results over the checkpoints of a training run, written by `bench watch`."""

PARTIAL = ".partial"
"""Ending of what is being written: a leftover of a killed run, never read."""

MAX_KEY_BYTES = 180
"""Longest key of a cached result that is used as a folder's name; file systems allow 255, temporary names add 42."""

_CUT = re.compile(r".{80}~[0-9a-f]{32}", re.DOTALL)
"""Folder of a result whose key is longer: no digest can be checked without the whole key."""

_JOURNAL = re.compile(r"rank-[0-9]{5,}\.jsonl")
_STATUS = ".status.json"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_HIDDEN = re.compile(r"\.(.+)\.(?:claim|[0-9a-f]{32}\.partial)")
_OLDER_LEFTOVER = re.compile(r"[^.].*\.([0-9a-f]{32}|status\.json\.[0-9]+)\.partial")
"""Files, never folders, of version 0.1.0."""


def metadata_key(key: str) -> str:
    """Key of the metadata of a group or an array; `""` is the root group.

    Examples
    --------
    >>> metadata_key("train/res5"), metadata_key("")
    ('train/res5/zarr.json', 'zarr.json')
    """
    return f"{key}/{METADATA}" if key else METADATA


def array_key(split: str, name: str) -> str:
    """Key of a layer, or of another array of a split."""
    return f"{split}/{name}"


def chunk_key(array: str, chunk: int, ndim: int) -> str:
    """Key of one chunk: Zarr v3's default naming, chunked over the first axis only.

    Examples
    --------
    >>> chunk_key("train/res5", 3, ndim=2)
    'train/res5/c/3/0'
    """
    return "/".join((array, "c", str(chunk), *("0",) * (ndim - 1)))


def journal_key(rank: int) -> str:
    """Key of one rank's journal."""
    return f"{JOURNALS}/rank-{rank:05d}.jsonl"


def journals_in(folder: Path) -> list[Path]:
    """Return the journals in a folder, in order of rank."""
    return sorted(path for path in folder.glob("rank-*.jsonl") if _JOURNAL.fullmatch(path.name))


def status_file(folder: Path, rank: int) -> Path:
    """Path of one rank's status, beside the journals."""
    return folder / f"rank-{rank:05d}{_STATUS}"


def status_files(folder: Path) -> list[Path]:
    """Return the statuses in a folder, in order of rank."""
    return sorted(folder.glob(f"*{_STATUS}"))


def cached_folder(root: Path, kind: str, key: str) -> Path:
    """Path of a cached result; a key that is too long for a file's name is cut, and ends in its sha256 instead."""
    if len(key.encode()) > MAX_KEY_BYTES:
        key = f"{key[:80]}~{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return root / kind / key


def cached_folders(root: Path, kind: str) -> list[Path]:
    """Return the cached results of a kind in order of their names, but not those whose key was cut."""
    folder = root / kind
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = (folder / name for name in names if not name.startswith(".") and not _CUT.fullmatch(name))
    return [path for path in found if path.is_dir()]


def cache_files(root: Path, kind: str, prefix: str) -> list[Path]:
    """Return the cached results whose keys begin with `prefix`, their claims, and what is half-written of them."""
    folder = root / kind
    return [path for path in folder.iterdir() if cached_key(path.name).startswith(prefix)] if folder.is_dir() else []


def cached_key(name: str) -> str:
    """Key of a cached result by the name of its folder, of its claim, or of what is being written there.

    Examples
    --------
    >>> cached_key("res5-10"), cached_key(".res5-10.claim"), cached_key(f".res5-10.{'0' * 32}.partial")
    ('res5-10', 'res5-10', 'res5-10')
    """
    hidden = _HIDDEN.fullmatch(name)
    return name if hidden is None else hidden[1]


def claim_file(root: Path, kind: str, key: str) -> Path:
    """Path of the lock of a process that computes a cached result."""
    folder = cached_folder(root, kind, key)
    return folder.with_name(f".{folder.name}.claim")


def claim_files(root: Path) -> list[Path]:
    """Return the locks of all cached results that some process computes, or has computed."""
    return [path for kind in CACHES for path in sorted((root / kind).glob(".*.claim"))]


def result_file(root: Path, name: str) -> Path:
    """Path of the results of one evaluation."""
    return root / RESULTS / f"{name}.json"


def curve_file(store: Path, name: str, ending: str) -> Path:
    """Path of what belongs to a curve.

    Examples
    --------
    >>> curve_file(Path("features"), "run1", "json").as_posix()
    'features/.curves/run1.json'
    """
    return store / CURVES / f"{name}.{ending}"


def partial_name(path: Path) -> Path:
    """Return a name beside `path` for what is being written there; no layer or feature set can have it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def is_leftover_of(name: str, other: str) -> bool:
    """Whether `other` is a name that `partial_name` gives beside a file or folder called `name`."""
    return re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}\.partial", other) is not None


def is_leftover(name: str, *, is_file: bool) -> bool:
    """Whether a name is that of something half-written; version 0.1.0 gave files other names than this one."""
    return bool(_LEFTOVER.fullmatch(name) or (is_file and _OLDER_LEFTOVER.fullmatch(name)))
